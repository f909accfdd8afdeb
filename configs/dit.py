"""DiT's and Stable Diffusion 3's blocks (arXiv 2212.09748, 2403.03206) on captioned digits: the noise level modulates
every layer.

What: `configs/digits.py`, but the noise level is not added to the image's tokens. It modulates them in every layer
(adaLN-zero: shift, scale and gate per item, zero at first) and in the last layer. The caption is a condition in the
context: its tokens are written by the same trunk and are not modulated, so that text stays cached while an image is
drawn. `configs/connector.py:cross` has cross-attention in its place.
Command: python -m transfusion.train --config configs/dit.py --workdir runs/dit
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/dit.py:mmdit` has one expert for each modality and joint attention (MM-DiT) with QK-norm.
`configs/dit.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment

FORMS = ("", "debug", "mmdit")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE)
    image = dataclasses.replace(dense.streams["image"], time="adaln", head="adaln")
    experiment = dataclasses.replace(dense, streams=dense.streams | {"image": image})
    if form == "mmdit":
        experiment = dataclasses.replace(
            experiment,
            model=dataclasses.replace(experiment.model, qk_norm="rms"),
            streams={name: dataclasses.replace(s, expert=name) for name, s in experiment.streams.items()},
        )
    return to_config_dict(experiment)
