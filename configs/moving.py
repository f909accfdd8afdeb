"""Transfusion (arXiv 2408.11039) on moving shapes: clips from captions, captions from clips, and a world model.

What: one of six shapes in one of six colours moves, appears, vanishes or takes another colour, 8 frames of 16x16
pixels. The data are made as they are read (`transfusion.data.scenes`), and an exact parser judges every drawn frame.
The model reads and draws the latents of a codec of clips that is causal in time: 4 x 2 x 2 tokens of 128 numbers.
Data: python -m transfusion.train --config configs/autoencoder_moving.py --workdir runs/autoencoder_moving
  python -m transfusion.train --config configs/autoencoder_moving.py:frames --workdir runs/autoencoder_moving_frames
Command: python -m transfusion.train --config configs/moving.py --workdir runs/moving
  python -m transfusion.sample --workdir runs/moving --prompt 'a red circle moves right' --output circle.webp
  python -m transfusion.sample --workdir runs/moving --caption circle.webp
Hardware: 2 CPU cores. Time and results: experiments/moving.
Forms: `configs/moving.py:frames` has a codec that takes clips frame by frame; two frames are joined in a token.
`:world` predicts the next frame, 2 x 2 tokens, from the caption and the frames before it (BAGEL's layout without a
tower), behind the same codec. `:pixels` has patches of pixels in place of latents, and needs no codec. `:debug` and
`:world_debug` train 20 steps of these in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text
from transfusion.sequence.text import TokenizerConfig

FORMS = ("", "debug", "frames", "pixels", "world", "world_debug")
FRAMES, SIDE = 8, 16
ROW = 4  # clips of a row
WORDS = pathlib.Path(__file__).with_name("scenes_words.json")
# A token has nearly as many numbers as the trunk is wide, see `configs/scenes_dense.py`.
CONTINUOUS = ContinuousConfig(prediction="data", shift=2.0)
PIXELS = CodecConfig()
# The codec of each form, and what its latents are like: of clips, of pairs of frames that are coded one by one, and
# patches of pixels.
LATENTS = {
    "": (
        CodecConfig("autoencoder", "runs/autoencoder_moving"),
        {"channels": 32, "patch": 2, "grid": (FRAMES // 2, 4, 4)},
    ),
    "frames": (
        CodecConfig("autoencoder", "runs/autoencoder_moving_frames"),
        {"channels": 12, "patch": 2, "patch_frames": 2, "grid": (FRAMES, 4, 4)},
    ),
    "pixels": (PIXELS, {"channels": 3, "patch": 4, "patch_frames": 2, "grid": (FRAMES, SIDE, SIDE)}),
}
LATENTS |= {"debug": LATENTS["pixels"], "world": LATENTS["frames"], "world_debug": LATENTS["pixels"]}


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    codec, latents = LATENTS[form]
    tokens = 64 if codec == PIXELS else 16
    video = Stream(
        embed="narrow", coder_width=16, head="linear", objective="continuous", attention="block", time="added",
        weight=30.0,
        table="sincos", budget=ROW * tokens, **latents,
    )  # fmt: skip
    # So many that none is known by heart; each of them is encoded once. A clip has eight frames to be foretold.
    count = 3000 if form.startswith("world") else 20_000
    clips = SourceConfig(kind="scenes", name="clips", resolution=SIDE, split=f"train[:{count}]")
    held_out = dataclasses.replace(clips, split="test")
    experiment = Experiment(
        steps=6000,
        batch_size=4,
        log_every=50,
        model=TransformerConfig(width=128, layers=6, heads=4, rope_axes=3, rope_interleaved=True, scan=False),
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=ROW * 14, weight=2.0), "video": video},
        # A clip that is read is clean.
        layout=layouts.transfusion(cap=1.0, position="grid", kind="video"),
        tokenizer=TokenizerConfig("huggingface", str(WORDS)),
        objectives=ObjectivesConfig(continuous={"video": CONTINUOUS}),
        codec=codec,
        data=DataConfig(sources={"clips": clips}, caption_first=0.5),
        optim=OptimConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=1000, keep=2),
        eval=EvalConfig(every=0, sources={"clips": held_out}, prompts="held_out"),
        sampling=SamplerConfig(steps=25, shift=CONTINUOUS.shift, guidance=2.0, temperature=0.0, max_tokens=16),
    )
    if form.startswith("world"):
        experiment = world(experiment)
    if form.endswith("debug"):
        experiment = debug_form(experiment)
    return to_config_dict(experiment)


def world(clips: Experiment) -> Experiment:
    """The experiment whose documents are frames, one after the other, instead of clips."""
    video = clips.streams["video"]
    frame = (video.grid[1] // video.patch) ** 2
    noised = dataclasses.replace(video, grid=video.grid[1:], patch_frames=1, budget=2 * FRAMES * frame)
    streams = {
        "text": dataclasses.replace(clips.streams["text"], budget=2 * (12 + 4 * FRAMES)),
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none"),
    }
    return dataclasses.replace(
        clips,
        steps=3000,
        batch_size=8,
        streams=streams,
        layout=layouts.world(),
        objectives=ObjectivesConfig(continuous={"noised": clips.objectives.continuous["video"]}),
        data=dataclasses.replace(clips.data, caption_first=1.0),
        # Guidance compares with nothing but the noise: it would guide away from the frames before, too.
        sampling=dataclasses.replace(clips.sampling, guidance=1.0, max_images=FRAMES, min_images=FRAMES),
    )
