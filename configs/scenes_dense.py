"""Transfusion (arXiv 2408.11039) on scenes: the base of the benchmark of systems at equal FLOPs.

What: pictures of coloured shapes without end (`transfusion.data.scenes`) with captions both ways, and a question to
each fact that captions say. One small model draws, captions and answers; how often it is right is judged exactly. Every
other system is a small change of this one, see `configs/scenes_systems.py`.
Command: python -m transfusion.train --config configs/scenes_dense.py --workdir runs/scenes_dense
Hardware: a CPU core. Time and results: experiments/scenes.
Forms: `configs/scenes_dense.py:unet` and `:ddpm` are those of `configs/digits.py`. `:debug` trains 20 steps in seconds,
and `:gpu` is the base for a GPU, which is not run yet; both may stand behind another form, as in `:unet_debug`.
"""

import dataclasses
import pathlib

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
from transfusion.sequence.text import TokenizerConfig

FORMS = ("", "debug", "gpu", "unet", "unet_debug", "unet_gpu", "ddpm", "ddpm_debug", "ddpm_gpu")
SIDE, PATCH = 18, 6  # so that a thing lies in one patch
# A patch has 108 numbers and the trunk is 128 wide: it has no room for noise that passes to a predicted velocity, but
# for clean pictures it has if noise enters through a few numbers (arXiv 2511.13720, section 4). Most of a picture is
# white, so that its error is small.
NARROW = 16
CONTINUOUS = ContinuousConfig(prediction="data", shift=2.0)
WORDS = pathlib.Path(__file__).with_name("scenes_words.json")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    tokens = (SIDE // PATCH) ** 2
    image = Stream(
        embed="narrow", coder_width=NARROW, head="linear", objective="continuous", attention="block", time="added",
        channels=3, patch=PATCH, grid=(SIDE, SIDE), budget=2 * tokens, weight=200.0, table="sincos",
    )  # fmt: skip
    sources = {
        "captions": SourceConfig(kind="scenes", name="plain_captions", resolution=SIDE, channels=3, weight=2.0),
        "facts": SourceConfig(kind="scenes", name="plain_facts", resolution=SIDE, channels=3),
    }
    held_out = {name: dataclasses.replace(source, split="test") for name, source in sources.items()}
    experiment = Experiment(
        steps=2000,
        batch_size=12,
        log_every=50,
        model=TransformerConfig(width=128, layers=4, heads=4, scan=False),
        # A row holds two pictures with their words.
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=24, weight=5.0), "image": image},
        layout=layouts.transfusion(),
        tokenizer=TokenizerConfig("huggingface", str(WORDS)),
        data=DataConfig(sources=sources, caption_first=0.7, cache=False),
        objectives=ObjectivesConfig(continuous={"image": CONTINUOUS}),
        optim=OptimConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.99),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=500, sources=held_out, samples=360, prompts="held_out"),
        sampling=SamplerConfig(steps=25, shift=CONTINUOUS.shift, guidance=2.0, temperature=0.0, max_tokens=16),
    )
    if form.startswith("unet"):
        experiment = unet(experiment)
    if form.startswith("ddpm"):
        continuous = {"image": dataclasses.replace(CONTINUOUS, path="cosine")}
        sampling = dataclasses.replace(experiment.sampling, solver="ddim", steps=50)
        experiment = dataclasses.replace(
            experiment, objectives=ObjectivesConfig(continuous=continuous), sampling=sampling
        )
    if form.endswith("gpu"):
        model = dataclasses.replace(experiment.model, width=512, layers=12, heads=8, scan=True, dtype="bfloat16")
        experiment = dataclasses.replace(experiment, batch_size=192, model=model)
    if form.endswith("debug"):
        experiment = debug_form(experiment, batch_size=4)
    return to_config_dict(experiment)


def unet(dense: Experiment) -> Experiment:
    """The experiment with a U-Net patch coder, whose patches have a side of 8: as many, of larger pictures."""
    image, side = dense.streams["image"], 8 * SIDE // PATCH
    coder = dataclasses.replace(
        image, embed="unet", head="unet", time="coder", table="none", coder_width=16, patch=8, grid=(side, side)
    )
    sources, held_out = (
        {name: dataclasses.replace(source, resolution=side) for name, source in part.items()}
        for part in (dense.data.sources, dense.eval.sources)
    )
    return dataclasses.replace(
        dense,
        streams=dense.streams | {"image": coder},
        data=dataclasses.replace(dense.data, sources=sources),
        eval=dataclasses.replace(dense.eval, sources=held_out),
    )
