"""Mogao (arXiv 2505.05472) on captioned digits: BAGEL with modulation by the noise level and positions with three axes.

What: `configs/bagel.py` with three changes. The noise level modulates the latents (adaLN-zero) and is not added to
them. Rotary positions have axes (time, y, x) that take turns over the frequencies, in place of one index per image and
tables. Text sees the vision tower's tokens but no latents; latents see everything.
Original: its code is not published. Where the paper leaves something open, BAGEL's choice is taken.
Command: python -m transfusion.train --config configs/mogao.py --workdir runs/mogao
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `:edit` adds examples of editing, as in `configs/bagel.py`. `configs/mogao.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment

FORMS = ("", "debug", "edit")
BAGEL = pathlib.Path(__file__).with_name("bagel.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    bagel = load_experiment(f"{BAGEL}:{form}" if form else BAGEL)
    streams = {name: dataclasses.replace(stream, table="none") for name, stream in bagel.streams.items()}
    noised = dataclasses.replace(streams["noised"], time="adaln")
    streams |= {
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none", visible_to=("noised", "clean")),
    }
    return to_config_dict(
        dataclasses.replace(
            bagel,
            model=dataclasses.replace(bagel.model, rope_axes=3, rope_interleaved=True),
            streams=streams,
            layout=layouts.mogao(),
        )
    )
