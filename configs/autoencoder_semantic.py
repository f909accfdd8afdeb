"""A decoder for the features of a vision tower, on 8x8 digits: 4x4 vectors of 64, for `configs/connector.py:blip3o`.

What: the tower of a run that reads images (Janus) is frozen; its features, normalised per channel, are the latents, and
a convolutional decoder learns to reconstruct the image from them, with some noise on them, since a model that draws
features does not hit them exactly.
Command: python -m transfusion.train --config configs/janusflow.py:understanding --workdir runs/janus_understanding
         python -m transfusion.train --config configs/autoencoder_semantic.py --workdir runs/autoencoder_semantic
         The first trains the tower; `--config.init.path=W` takes another run of such a tower.
Hardware: 2 CPU cores. `configs/autoencoder_semantic.py:debug` trains 20 steps in seconds, its tower frozen at random.
BLIP3-o (arXiv 2505.09568) has CLIP's tower, pools its features to 64 vectors, and decodes them by diffusion.
"""

import dataclasses
import pathlib

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
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
    source = SourceConfig(name="digits", split="train", resolution=8, channels=tower.channels)
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
        data=DataConfig(sources={"digits": source}),
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
        eval=EvalConfig(every=400, sources={"digits": dataclasses.replace(source, split="test")}),
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
