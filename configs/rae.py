"""RAE (arXiv 2510.11690; in a unified model arXiv 2603.03276) on captioned digits: the features of a vision tower are
the latents that the trunk reads and draws.

What: `configs/digits.py` whose images are the 16 features of 64 numbers that a frozen contrastive tower gives, and not
pixels. Captions are read from them and drawn images are made of them by the decoder of
`configs/autoencoder_semantic.py`. So many numbers want more noise: the noise level is shifted as by the square root of
how many there are (section 4.2). The head is wider than the trunk (section 5): two layers of its own, which the noise
level modulates.
Original: DINOv2's or SigLIP-2's features, decoded by a Vision Transformer; the reference number of the shift is 4,096.
Here it is 64, that of a digit's pixels.
Command: python -m transfusion.train --config configs/contrastive.py --workdir runs/contrastive
  python -m transfusion.train --config configs/autoencoder_semantic.py --workdir runs/rae_codec
    --config.init.path=runs/contrastive
  python -m transfusion.train --config configs/rae.py --workdir runs/rae
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/rae.py:debug` trains 20 steps in seconds; it needs a run of `configs/autoencoder_semantic.py:debug` in
`codec.path`.
"""

import dataclasses
import math
import pathlib

from transfusion.codecs import CodecConfig
from transfusion.config import check_form, to_config_dict
from transfusion.model.config import Stage
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.programs import load_experiment

FORMS = ("", "debug")
PIXELS = pathlib.Path(__file__).with_name("tuna2.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    pixels = load_experiment(f"{PIXELS}:{form}" if form else PIXELS)
    image, model = pixels.streams["image"], pixels.model
    grid = tuple(side // image.patch for side in image.grid)
    # As wide as the tower of `configs/contrastive.py`.
    image = dataclasses.replace(image, channels=model.width // 2, patch=1, grid=grid)
    numbers = math.prod(grid) * image.channels
    shift = math.sqrt(numbers / math.prod(pixels.streams["image"].grid))
    head = dataclasses.replace(model.stages["head"].trunk, width=2 * model.width)
    return to_config_dict(
        dataclasses.replace(
            pixels,
            model=dataclasses.replace(model, stages={"head": Stage(head, "linear")}),
            streams=pixels.streams | {"image": image},
            codec=CodecConfig("autoencoder", "runs/rae_codec"),
            objectives=ObjectivesConfig(continuous={"image": ContinuousConfig(shift=shift)}),
            sampling=dataclasses.replace(pixels.sampling, shift=shift),
        )
    )
