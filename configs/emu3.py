"""Emu3 (arXiv 2409.18869) on captioned digits: codes in the text's vocabulary, with their size and with ends of rows.

What: the data and codes of `configs/showo.py` (7x7 codes of `configs/vq_digits.py` for 28x28 pixels, which move by up
to 2). An image is written as BOI, '7*7', a separator, the rows of codes with an end after each, the end of the frame,
EOI. It is all one causal text without biases. The loss of a code counts half. Drawings are guided by the difference to
a negative prompt.
Data: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  This trains the codec.
Command: python -m transfusion.train --config configs/emu3.py --workdir runs/emu3
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/emu3.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.programs import load_experiment
from transfusion.sequence import text

FORMS = ("", "debug")
CODES = pathlib.Path(__file__).with_name("showo.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    base = load_experiment(f"{CODES}:debug" if form == "debug" else CODES)
    codes, grid = base.streams["image"].vocabulary, base.streams["image"].grid
    layout = layouts.emu3(codes, (grid,))
    # Two documents a row, as in the dense experiment; a vocabulary that is a multiple of 8, to be split over a mesh.
    budget = base.streams["text"].budget + 2 * len(layout["image"][0].spelling.template(grid))
    vocabulary = text.VOCABULARY + -(-codes // 8) * 8
    words = dataclasses.replace(base.streams["text"], vocabulary=vocabulary, budget=budget, weight=1.0)
    # As published, but for the top 2,048 of 32,768 codes. The negative prompt is ours: theirs is of photographs.
    sampling = dataclasses.replace(base.sampling, guidance=3.0, negative="a handwritten")
    data = dataclasses.replace(base.data, shift=0 if form == "debug" else 2)  # as in `configs/chameleon.py`
    experiment = dataclasses.replace(base, streams={"text": words}, layout=layout, sampling=sampling)
    return to_config_dict(dataclasses.replace(experiment, data=data, init=InitConfig()))
