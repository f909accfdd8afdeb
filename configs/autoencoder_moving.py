"""A small KL autoencoder of clips, causal in time: 8 frames of 16x16 pixels become 4 x 4 x 4 latents of 32 channels.

What: Gaussian latents, for `configs/moving.py`. Convolutions over time are padded on the side of the past only, so that
no frame depends on a later pair of frames (MAGVIT-v2, arXiv 2310.05737, section 3.2). An image is a clip in which
nothing moves. Clips are made as they are read (`transfusion.data.scenes`).
Command: python -m transfusion.train --config configs/autoencoder_moving.py --workdir runs/autoencoder_moving
  python experiments/moving/codec.py --workdir runs/autoencoder_moving
Hardware: 2 CPU cores. Time and results: experiments/moving.
Forms: `:frames` is the autoencoder of single frames, for `configs/moving.py:frames` and `:world`. `:debug` and
`:frames_debug` train 20 steps of each in seconds.
"""

import dataclasses

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig

FORMS = ("", "debug", "frames", "frames_debug")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    clips = SourceConfig(kind="scenes", name="clips", resolution=16, length=8)
    codec = AutoencoderConfig(
        frames="causal", time_down=2, patch=4, patch_frames=2, channels=(48,), middle_attention=False,
        straight=True, latent_channels=32,
        # A thing covers a seventh of a frame: the absolute error is least where it is left out, and learns slowly.
        reconstruction="l2", kl_weight=1e-3,
    )  # fmt: skip
    experiment = Experiment(
        task="autoencoder",
        steps=1200,
        batch_size=8,
        log_every=50,
        autoencoder=codec,
        data=DataConfig(sources={"clips": clips}, cache=False),
        optim=OptimConfig(learning_rate=3e-3, final_learning_rate=1e-5, warmup=50, weight_decay=0.0, ema=0.99),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=0, sources={"clips": dataclasses.replace(clips, split="test")}),
    )
    if form.startswith("frames"):
        experiment = dataclasses.replace(
            experiment,
            steps=3000,
            batch_size=32,
            data=DataConfig(sources={"clips": dataclasses.replace(clips, length=0)}, cache=False),
            autoencoder=dataclasses.replace(codec, patch_frames=1, latent_channels=12, frames="", time_down=1),
        )
    if form.endswith("debug"):
        experiment = dataclasses.replace(
            experiment,
            steps=20,
            batch_size=2,
            log_every=5,
            autoencoder=dataclasses.replace(experiment.autoencoder, channels=(8,)),
            checkpoint=CheckpointConfig(every=10, keep=2),
        )
    return to_config_dict(experiment)
