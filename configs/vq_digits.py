"""Codes of handwritten digits: 28x28 pixels become 7x7 codes of 128, for the systems that predict codes.

What: a VQ autoencoder. `configs/showo.py` and the systems that build on it draw its codes.
Data: python -m transfusion.prepare --data_dir data digits
Command: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  python -m transfusion.evaluate --workdir runs/vq_digits
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/vq_digits.py:multiscale` has VAR's growing grids, of sides 1, 2, 4 and 7. `:debug` and
`:multiscale_debug` train 20 steps of each in seconds.
"""

import dataclasses

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.quantizers import QuantizerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig

FORMS = ("", "debug", "multiscale", "multiscale_debug")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    source = SourceConfig(name="digits", split="train", resolution=28, channels=1)
    experiment = Experiment(
        task="autoencoder",
        steps=300,
        batch_size=32,
        log_every=50,
        autoencoder=AutoencoderConfig(
            form="multiscale" if form.startswith("multiscale") else "vq",
            image_channels=1,
            channels=(8, 16, 32),
            latent_channels=8,
            middle_attention=False,
            quantizer=QuantizerConfig(codes=128, decay=0.95, revive=0.03, scales=(1, 2, 4, 7)),
        ),
        data=DataConfig(sources={"digits": source}),
        optim=OptimConfig(learning_rate=3e-3, final_learning_rate=3e-5, warmup=20, weight_decay=0.0, ema=0.98),
        checkpoint=CheckpointConfig(every=150, keep=2),
        eval=EvalConfig(every=150, sources={"digits": dataclasses.replace(source, split="test")}),
    )
    if form.endswith("debug"):
        experiment = dataclasses.replace(
            experiment, steps=20, batch_size=4, log_every=5,
            autoencoder=dataclasses.replace(experiment.autoencoder, channels=(8, 8, 8)),
            checkpoint=CheckpointConfig(every=10, keep=2),
            eval=dataclasses.replace(experiment.eval, every=10, batches=1),
        )  # fmt: skip
    return to_config_dict(experiment)
