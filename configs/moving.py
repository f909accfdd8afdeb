"""Transfusion (arXiv 2408.11039) on moving shapes: clips from captions, captions from clips, and a world model.

What: one of six shapes in one of six colours moves, appears, vanishes or takes another colour, 8 frames of 16x16
pixels. The data are made as they are read (`transfusion.data.scenes`), without end: no clip of training comes twice but
by chance, and an exact parser judges every drawn frame.
Command: python -m transfusion.train --config configs/moving.py --workdir runs/moving
  python -m transfusion.sample --workdir runs/moving --prompt 'a red circle moves right' --output circle.webp
  python -m transfusion.sample --workdir runs/moving --caption circle.webp
Hardware: 2 CPU cores. Time and results: experiments/moving.
Forms: `configs/moving.py:world` predicts the next frame from the caption and the frames before it (BAGEL's layout
without a tower). `:debug` and `:world_debug` train 20 steps of each in seconds.
"""

import dataclasses

from transfusion import layouts
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text

FORMS = ("", "debug", "world", "world_debug")
FRAMES, SIDE = 8, 16
# A token holds 96 values, nearly as many as the trunk is wide, and most of them are noise. The head predicts the data,
# which are few flat shapes, and the loss is that of the velocity (Li and He, arXiv 2511.13720, "Back to basics").
SHAPES = ContinuousConfig(prediction="data", weighting="inverse_square", times="logit_normal", mean=-0.8, std=0.8)


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    video = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added",
        channels=3, patch=4, patch_frames=2, grid=(FRAMES, SIDE, SIDE), budget=4 * 64, weight=5.0, table="sincos",
    )  # fmt: skip
    clips = SourceConfig(kind="scenes", name="clips", resolution=SIDE)
    held_out = dataclasses.replace(clips, split="test")
    experiment = Experiment(
        steps=3000,
        batch_size=8,
        log_every=50,
        model=TransformerConfig(width=128, layers=5, heads=4, rope_axes=3, rope_interleaved=True, scan=False),
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=4 * 36, weight=2.0), "video": video},
        layout=layouts.transfusion(position="grid", kind="video"),
        objectives=ObjectivesConfig(continuous={"video": SHAPES}),
        data=DataConfig(sources={"clips": clips}, caption_first=0.6, cache=False),
        optim=OptimConfig(learning_rate=2e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=500, sources={"clips": held_out}, prompts="held_out"),
        sampling=SamplerConfig(steps=25, guidance=2.0, temperature=0.0, max_tokens=48),
    )
    if form.startswith("world"):
        experiment = world(experiment)
    if form.endswith("debug"):
        experiment = debug_form(experiment)
    return to_config_dict(experiment)


def world(clips: Experiment) -> Experiment:
    """The experiment whose documents are frames, one after the other, instead of clips."""
    frame = (SIDE // 4) ** 2
    noised = dataclasses.replace(clips.streams["video"], grid=(SIDE, SIDE), patch_frames=1, budget=2 * FRAMES * frame)
    streams = {
        "text": dataclasses.replace(clips.streams["text"], budget=2 * (36 + 4 * FRAMES)),
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none"),
    }
    return dataclasses.replace(
        clips,
        steps=1500,
        streams=streams,
        layout=layouts.world(),
        objectives=ObjectivesConfig(continuous={"noised": SHAPES}),
        data=dataclasses.replace(clips.data, caption_first=1.0),
        # Guidance compares with nothing but the noise: it would guide away from the frames before, too.
        sampling=dataclasses.replace(clips.sampling, guidance=1.0, max_images=FRAMES, min_images=FRAMES),
    )
