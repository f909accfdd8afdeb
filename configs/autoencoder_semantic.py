"""A decoder for the features of a vision tower, on digits: 8x8 pixels from 4x4 vectors of 64 channels.

What: the latents are the features of a frozen vision tower that reads images (Janus), normalised per channel. A
convolutional decoder learns to reconstruct the image from them. Training adds some noise to the features, because a
model that draws features does not hit them exactly. `configs/connector.py:blip3o` draws through this decoder.
Original: BLIP3-o (arXiv 2505.09568) has CLIP's tower, pools its features to 64 vectors, and decodes them by diffusion.
Command: python -m transfusion.train --config configs/janusflow.py:understanding --workdir runs/janus_understanding
  python -m transfusion.train --config configs/autoencoder_semantic.py --workdir runs/autoencoder_semantic
  The first command trains the tower; `--config.init.path=W` takes the tower of another run.
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/autoencoder_semantic.py:debug` trains 20 steps in seconds, with a tower that is frozen at random.
"""

import dataclasses
import pathlib

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig
from transfusion.initial import InitConfig
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.programs import load_experiment
from transfusion.running.checkpoint import CheckpointConfig

FORMS = ("", "debug")
READS = pathlib.Path(__file__).with_name("janusflow.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    debug = form == "debug"
    reads = load_experiment(f"{READS}:understanding_debug" if debug else f"{READS}:understanding")
    tower = reads.model.towers["semantic"]
    (name, source), *_ = reads.data.sources.items()
    source = dataclasses.replace(source, resolution=tower.patch * tower.grid[0], channels=tower.channels)
    experiment = Experiment(
        task="autoencoder",
        steps=800,
        batch_size=32,
        log_every=50,
        autoencoder=AutoencoderConfig(
            image_channels=tower.channels,
            channels=(32, 64),
            latent_channels=tower.width,
            tower=tower,
            noise=0.2,
            kl_weight=0.0,
            reconstruction="l2",
        ),
        data=DataConfig(sources={name: source}),
        init=InitConfig("runs/janus_understanding", (("tower", "parts/semantic/embed/tower"),)),
        optim=OptimConfig(
            learning_rate=2e-3,
            final_learning_rate=1e-5,
            warmup=100,
            weight_decay=0.0,
            ema=0.995,
            groups=(LearningRateGroup("tower|latent_mean|latent_deviation", 0.0),),
        ),
        checkpoint=CheckpointConfig(every=400, keep=2),
        eval=EvalConfig(every=400, sources={name: dataclasses.replace(source, split="test")}),
    )
    if debug:
        experiment = dataclasses.replace(
            experiment,
            steps=20,
            batch_size=4,
            log_every=5,
            autoencoder=dataclasses.replace(experiment.autoencoder, channels=(8, 8)),
            init=InitConfig(),
            checkpoint=CheckpointConfig(every=10, keep=2),
            eval=dataclasses.replace(experiment.eval, every=10, batches=1),
        )
    return to_config_dict(experiment)
