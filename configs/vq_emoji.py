"""Codes of emoji: 24x24 pixels become 12x12 codes of 512, by three kinds of quantizers.

What: an autoencoder with the encoder and decoder of `configs/autoencoder_emoji.py`.
Data: python -m transfusion.prepare --data_dir data emoji/24
Command: python -m transfusion.train --config configs/vq_emoji.py --workdir runs/vq_emoji
  python -m transfusion.evaluate --workdir runs/vq_emoji
Hardware: 2 CPU cores. Time and results: experiments/codecs_on_emoji, beside Gaussian latents of as many bits.
Forms: `configs/vq_emoji.py:fsq` rounds each channel to a few levels (8 x 8 x 8 = 512 codes), `:multiscale` has VAR's
growing grids, of sides 1 to 12. `:debug`, `:fsq_debug` and `:multiscale_debug` train 20 steps of each in seconds.
"""

import dataclasses

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.quantizers import QuantizerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig

FORMS = ("", "debug", "fsq", "fsq_debug", "multiscale", "multiscale_debug")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    kind = form.removesuffix("debug").removesuffix("_") or "vq"
    source = SourceConfig(name="emoji/24", split="train", resolution=24, channels=3)
    experiment = Experiment(
        task="autoencoder",
        steps=600,
        batch_size=16,
        log_every=50,
        autoencoder=AutoencoderConfig(
            form=kind,
            channels=(24, 48),
            latent_channels=8,
            quantizer=QuantizerConfig(
                codes=512, decay=0.98, revive=0.03, levels=(8, 8, 8), scales=(1, 2, 3, 4, 6, 9, 12)
            ),
        ),
        data=DataConfig(sources={"emoji": source}),
        optim=OptimConfig(learning_rate=2e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.0, ema=0.99),
        checkpoint=CheckpointConfig(every=200, keep=2),
        eval=EvalConfig(every=200, sources={"emoji": dataclasses.replace(source, split="heldout")}),
    )
    if form.endswith("debug"):
        few = dataclasses.replace(experiment.autoencoder.quantizer, scales=(1, 3, 12))  # each is compiled
        coder = dataclasses.replace(experiment.autoencoder, channels=(8, 8), middle_attention=False, quantizer=few)
        experiment = dataclasses.replace(
            experiment, steps=20, batch_size=4, log_every=5,
            autoencoder=coder,
            checkpoint=CheckpointConfig(every=10, keep=2),
            eval=dataclasses.replace(experiment.eval, every=10, batches=1),
        )  # fmt: skip
    return to_config_dict(experiment)
