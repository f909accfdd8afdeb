"""Mixture-of-Transformers (arXiv 2411.04996) on captioned digits: every weight of the trunk once per modality.

What: `configs/digits.py` with an expert for text and one for images; attention stays global. As many FLOPs per token
as the dense model, twice its parameters. QK-norm as in the authors' code. Norms come before the sublayers;
`configs/mot.py:post` has them after the sublayers, as published (equation 1). `model.untied` says what is per expert.
Command: python -m transfusion.train --config configs/mot.py --workdir runs/mot
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
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
