"""Codes of scenes: pictures of 24x24 pixels become 3x3 codes, for the systems of `configs/scenes_systems.py` that draw
codes, and for `configs/scenes.py:codes`.

What: an autoencoder with a codebook on pictures of coloured shapes, as `configs/vq_digits.py`.
Command: python -m transfusion.train --config configs/scenes_vq.py --workdir runs/scenes_vq
Hardware: a CPU core. Time and results: experiments/scenes.
Forms: `configs/scenes_vq.py:multiscale` has codes at growing scales, of sides 1 and 3, for `configs/var.py`, and
`:kl` Gaussian latents. `:debug`, `:multiscale_debug` and `:kl_debug` train 20 steps in seconds.
"""

import dataclasses

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.quantizers import QuantizerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig

FORMS = ("", "debug", "multiscale", "multiscale_debug", "kl", "kl_debug")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    kind = form.removesuffix("debug").removesuffix("_") or "vq"
    source = SourceConfig(kind="scenes", name="plain_captions", resolution=24, channels=3)
    experiment = Experiment(
        task="autoencoder",
        steps=2000,
        batch_size=64,
        log_every=50,
        autoencoder=AutoencoderConfig(
            form=kind,
            # A code sees its own place of the picture alone, and what the linear map leaves is small.
            patch=8,
            channels=(128,),
            straight=True,
            latent_channels=8,  # as many numbers as the systems' streams have
            middle_attention=False,
            # A thing covers a third of its place: the absolute error is least where it is left out.
            reconstruction="l2",
            quantizer=QuantizerConfig(codes=512, decay=0.97, revive=0.03, scales=(1, 3)),
        ),
        data=DataConfig(sources={"captions": source}, cache=False),
        optim=OptimConfig(learning_rate=3e-3, final_learning_rate=3e-5, warmup=50, weight_decay=0.0, ema=0.99),
        checkpoint=CheckpointConfig(every=250, keep=2),
        eval=EvalConfig(every=500, sources={"captions": dataclasses.replace(source, split="test")}),
    )
    if form.endswith("debug"):
        experiment = dataclasses.replace(
            experiment, steps=20, batch_size=4, log_every=5,
            autoencoder=dataclasses.replace(experiment.autoencoder, channels=(8,)),
            checkpoint=CheckpointConfig(every=10, keep=2),
            eval=dataclasses.replace(experiment.eval, every=10, batches=1),
        )  # fmt: skip
    return to_config_dict(experiment)
