"""A small KL autoencoder for emoji: images of 24x24 pixels become 12x12 latents of 4 channels.

What: Gaussian latents, for `configs/emoji.py:latents`. Emoji are 24x24 pixels; the image is halved once.
Data: python -m transfusion.prepare --data_dir data emoji/24
Command: python -m transfusion.train --config configs/autoencoder_emoji.py --workdir runs/autoencoder_emoji
Hardware: 2 CPU cores.
Forms: `configs/autoencoder_emoji.py:debug` trains 20 steps in seconds.
"""

import dataclasses

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig

FORMS = ("", "debug")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    source = SourceConfig(name="emoji/24", split="train", resolution=24, channels=3)
    experiment = Experiment(
        task="autoencoder",
        steps=2000,
        batch_size=32,
        log_every=50,
        autoencoder=AutoencoderConfig(image_channels=3, channels=(24, 48), latent_channels=4),
        data=DataConfig(sources={"emoji": source}),
        optim=OptimConfig(learning_rate=2e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.0, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=500, sources={"emoji": dataclasses.replace(source, split="heldout")}),
    )
    if form == "debug":
        experiment = dataclasses.replace(
            experiment,
            steps=20,
            batch_size=4,
            log_every=5,
            autoencoder=AutoencoderConfig(image_channels=3, channels=(8, 8), latent_channels=4),
            checkpoint=CheckpointConfig(every=10, keep=2),
            eval=dataclasses.replace(experiment.eval, every=10, batches=1),
        )
    return to_config_dict(experiment)
