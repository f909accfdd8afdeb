"""Transfusion (arXiv 2408.11039) on named emoji: combinations of person and skin tone that were never shown.

What: all named Twemoji at 24x24 pixels. One in ten of the (emoji, skin tone) combinations is held out.
Data: python -m transfusion.prepare --data_dir data emoji/24
Command: python -m transfusion.train --config configs/emoji.py --workdir runs/emoji
Hardware: 2 CPU cores. Time: 1 h 50 min (2026-11-22, AMD EPYC, beside other programs). Results and pictures: the front
page, README.md.
Forms: `:latents` draws the latents of `configs/autoencoder_emoji.py`. `:shortcut` and `:mean_flow` teach the
finished run to draw in a few steps (experiments/few_steps). `configs/emoji.py:debug` trains 20 steps in seconds.
"""

import dataclasses

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.initial import InitConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import AheadConfig, ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Released, Stream, TimeConfig, text
from transfusion.sequence.times import AHEAD

FORMS = ("", "debug", "latents", "shortcut", "mean_flow")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added",
        channels=3, patch=4, grid=(24, 24), budget=108, weight=5.0, table="sincos",
    )  # fmt: skip
    experiment = Experiment(
        steps=9000,
        # Three images a row, 24 a step: activations that stay in the caches of two cores.
        batch_size=8,
        log_every=50,
        model=TransformerConfig(width=256, layers=6, heads=4, scan=False),
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=96), "image": image},
        layout=layouts.transfusion(),
        # Shapes are read from the caption only where the noise hides them: most steps go there.
        objectives=ObjectivesConfig(continuous={"image": ContinuousConfig(times="logit_normal", mean=-0.7)}),
        data=DataConfig(sources={"emoji": SourceConfig(name="emoji/24", split="train")}, caption_first=0.9),
        optim=OptimConfig(learning_rate=1.2e-3, final_learning_rate=2e-5, warmup=300, weight_decay=0.01, ema=0.999),
        checkpoint=CheckpointConfig(every=1000, keep=2),
        eval=EvalConfig(
            every=3000,
            sources={"emoji": SourceConfig(name="emoji/24", split="heldout")},
            samples=200,
            captions=200,
            prompts="held_out",
        ),
        sampling=SamplerConfig(solver="heun", steps=20, guidance=3.0, temperature=0.0, max_tokens=80),
    )
    if form == "debug":
        experiment = debug_form(experiment)
    if form == "latents":
        stream = dataclasses.replace(image, channels=4, patch=2, grid=(12, 12))
        experiment = dataclasses.replace(
            experiment,
            streams=experiment.streams | {"image": stream},
            codec=CodecConfig("autoencoder", "runs/autoencoder_emoji"),
        )
    if form in AHEAD:
        # MeanFlow differentiates by the times: the usual waves of up to 1000 radians would drown that in noise.
        slow = {"mean_flow": Released(time=TimeConfig(scale=10.0))}
        fresh = {"mean_flow": "parts/image/time"}
        stream = dataclasses.replace(image, objective=form, released=slow.get(form, Released()))
        ahead = AheadConfig(share=0.5, levels=4, guidance=3.0)
        continuous = dataclasses.replace(experiment.objectives.continuous["image"], ahead=ahead)
        experiment = dataclasses.replace(
            experiment,
            streams=experiment.streams | {"image": stream},
            objectives=ObjectivesConfig(continuous={"image": continuous}),
            steps=3000,
            init=InitConfig("runs/emoji", fresh=fresh.get(form, "")),
            optim=dataclasses.replace(experiment.optim, learning_rate=6e-4),
            sampling=dataclasses.replace(experiment.sampling, solver="shortcut", steps=4, guidance=1.0),
        )
    return to_config_dict(experiment)
