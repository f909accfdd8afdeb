"""Transfusion (arXiv 2408.11039) on captioned digits: the five-minute run.

What: 1,500 real digits of 8x8 pixels with captions such as 'a handwritten seven'. One model writes captions byte by
byte and draws pixels by flow matching.
Data: python -m transfusion.prepare --data_dir data digits
Command: python -m transfusion.train --config configs/digits.py --workdir runs/digits
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits; `make demo` prints them.
Forms: `:unet` has the paper's U-Net patch coder, `:ddpm` has its DDPM objective. `:shortcut` and `:mean_flow` teach
the finished run to draw in a few steps (experiments/few_steps), as if it had been trained 1.8 times as long; train
`runs/digits` first, or set `--config.init.path=W`. `:sizes` reads and draws digits on canvases of three sizes
(experiments/sizes; prepare `sized_digits`). `configs/digits.py:debug` trains 20 steps in seconds, and so does
`:sizes_debug`.
"""

import dataclasses

from transfusion import layouts
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.sizes import SizesConfig
from transfusion.initial import InitConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import AheadConfig, ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Released, Stream, TimeConfig, text
from transfusion.sequence.times import AHEAD

FORMS = ("", "debug", "unet", "ddpm", "shortcut", "mean_flow", "sizes", "sizes_debug")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added",
        channels=1, patch=2, grid=(8, 8), budget=32, weight=5.0, table="sincos",
    )  # fmt: skip
    experiment = Experiment(
        steps=850,
        batch_size=28,
        log_every=50,
        model=TransformerConfig(width=128, layers=4, heads=2, scan=False),
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=48, weight=5.0), "image": image},
        layout=layouts.transfusion(),
        # More captions than the paper's one in five: 1,500 images are few to learn to read from.
        data=DataConfig(sources={"digits": SourceConfig(name="digits", split="train")}, caption_first=0.5),
        optim=OptimConfig(learning_rate=2e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=400, sources={"digits": SourceConfig(name="digits", split="test")}),
        sampling=SamplerConfig(steps=25, guidance=2.0, temperature=0.0, max_tokens=32),
    )
    if form in ("sizes", "sizes_debug"):
        experiment = of_sizes(experiment)
    if form in ("debug", "sizes_debug"):
        experiment = debug_form(experiment, batch_size=4)
    if form == "unet":
        coder = dataclasses.replace(image, embed="unet", head="unet", time="coder", table="none", coder_width=16)
        experiment = dataclasses.replace(experiment, streams=experiment.streams | {"image": coder})
    if form == "ddpm":
        # An error of the predicted noise counts little where there is most noise, and what digit it will be is decided
        # there: so there are more such times, and more images that have them (experiments/ddpm_on_digits).
        continuous = {"image": ContinuousConfig(path="cosine", prediction="noise", shift=2.0)}
        experiment = dataclasses.replace(
            experiment,
            objectives=ObjectivesConfig(continuous=continuous),
            data=dataclasses.replace(experiment.data, caption_first=0.6),
            sampling=dataclasses.replace(experiment.sampling, solver="ddim", steps=50, guidance=3.0),
        )
    if form in AHEAD:
        experiment = in_few_steps(experiment, form)
    return to_config_dict(experiment)


def of_sizes(experiment: Experiment) -> Experiment:
    """The experiment with digits on canvases of three sizes."""
    source = SourceConfig(name="sized_digits", sizes=SizesConfig(tokens=24, multiple=2, aspect=1.5))
    held_out = dataclasses.replace(source, split="test")
    streams = {
        "text": dataclasses.replace(experiment.streams["text"], budget=64),
        "image": dataclasses.replace(experiment.streams["image"], grid=(0, 0), budget=48, items=3),
    }
    # Of two sizes, the larger one has more noise at the same time, so that both lose the same detail.
    shift = {"shift_by": "resolution", "shift_tokens": 16}
    return dataclasses.replace(
        experiment,
        streams=streams,
        objectives=ObjectivesConfig(continuous={"image": ContinuousConfig(**shift)}),
        data=dataclasses.replace(experiment.data, sources={"digits": source}),
        eval=dataclasses.replace(experiment.eval, sources={"digits": held_out}),
        sampling=dataclasses.replace(experiment.sampling, **shift),
    )


def in_few_steps(experiment: Experiment, form: str) -> Experiment:
    """The finished experiment, which learns the mean velocities of the objective `form`."""
    # MeanFlow differentiates by the times: the usual waves of up to 1000 radians would drown that in noise.
    slow = {"mean_flow": Released(time=TimeConfig(scale=10.0))}
    fresh = {"mean_flow": "parts/image/time"}
    stream = dataclasses.replace(experiment.streams["image"], objective=form, released=slow.get(form, Released()))
    continuous = {"image": ContinuousConfig(ahead=AheadConfig(share=0.5, levels=4, guidance=2.0))}
    return dataclasses.replace(
        experiment,
        steps=400,
        init=InitConfig("runs/digits", fresh=fresh.get(form, "")),
        optim=dataclasses.replace(experiment.optim, learning_rate=1e-3, warmup=50),
        streams=experiment.streams | {"image": stream},
        objectives=ObjectivesConfig(continuous=continuous),
        sampling=dataclasses.replace(experiment.sampling, solver="shortcut", steps=4, guidance=1.0),
    )
