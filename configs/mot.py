"""Mixture-of-Transformers (arXiv 2411.04996) on captioned digits: each modality has its own weights in the trunk.

What: `configs/digits.py` with one expert for text and one for images; attention is over all tokens. A token costs as
many FLOPs as in the dense model, with twice the parameters. QK-norm is as in the authors' code. `model.untied` says
which weights each expert owns.
Command: python -m transfusion.train --config configs/mot.py --workdir runs/mot
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/mot.py:post` has norms behind the sublayers, as published (equation 1); the others have them before.
`configs/mot.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment

FORMS = ("", "debug", "post")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE)
    streams = {name: dataclasses.replace(stream, expert=name) for name, stream in dense.streams.items()}
    model = dataclasses.replace(dense.model, qk_norm="rms", norm_place="post" if form == "post" else "pre")
    return to_config_dict(dataclasses.replace(dense, model=model, streams=streams))
