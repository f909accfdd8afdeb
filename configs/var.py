"""VAR (arXiv 2404.02905) on captioned digits: codes of images at growing scales, each scale drawn at once.

What: `configs/showo.py` with the codes of `configs/vq_digits.py:multiscale`, on grids of 1x1, 2x2, 4x4 and 7x7. A scale
is predicted from the sum of the vectors of all codes before it, averaged to its size. It sees itself and the scales
before it. Queries and keys have length 1, with a learned factor per head. Guidance grows with the scale. The codec's
quantizer is copied into the model (`init.copy`) and frozen there (`optim.groups`).
Original: it draws classes, which modulate every layer, and reads no images. Here a caption precedes the image, and the
codes of images are read for captions.
Data: python -m transfusion.train --config configs/vq_digits.py:multiscale --workdir runs/vq_digits_multiscale
  This trains the codec.
Command: python -m transfusion.train --config configs/var.py --workdir runs/var
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/var.py:debug` trains 20 steps in seconds, on grey levels at scales of 1x1, 2x2 and 4x4 with a random
quantizer.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.optim import LearningRateGroup
from transfusion.programs import load_experiment
from transfusion.sequence import ConnectorConfig

FORMS = ("", "debug")
FLAT, CODES = (pathlib.Path(__file__).with_name(name) for name in ("showo.py", "vq_digits.py"))
QUANTIZER = "parts/image/embed/quantizer"
CODEC = "runs/vq_digits_multiscale"


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    if form:
        flat = load_experiment(f"{FLAT}:{form}")
        # What is left over is between white minus black and black minus white.
        levels = dataclasses.replace(flat.codec.levels, scales=(1, 2, 4), low=-2.0, high=2.0)
        return to_config_dict(grows(flat, levels.scales, dataclasses.replace(flat.codec, levels=levels)))
    scales = load_experiment(f"{CODES}:multiscale").autoencoder.quantizer.scales
    experiment = grows(load_experiment(FLAT), scales, CodecConfig("autoencoder", CODEC))
    init = InitConfig(CODEC, ((QUANTIZER, "quantizer"),))
    return to_config_dict(dataclasses.replace(experiment, init=init))


def grows(flat: Experiment, scales: tuple[int, ...], codec: CodecConfig) -> Experiment:
    """The experiment on codes at these scales."""
    image = dataclasses.replace(
        flat.streams["image"], scales=scales, channels=8, embed="scales", connector=ConnectorConfig(),
        objective="next_scale", attention="frame",
        budget=2 * sum(side * side for side in scales),
    )  # fmt: skip
    words = dataclasses.replace(flat.streams["text"], weight=1.0)
    frozen = (LearningRateGroup(QUANTIZER, 0.0),)
    return dataclasses.replace(
        flat,
        model=dataclasses.replace(flat.model, qk_norm="l2"),
        streams={"text": words, "image": image},
        layout=layouts.var(),
        codec=codec,
        optim=dataclasses.replace(flat.optim, groups=frozen),
        sampling=dataclasses.replace(flat.sampling, guidance=2.5, code_top_p=0.96),
    )
