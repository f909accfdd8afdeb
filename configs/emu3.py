"""Emu3 (arXiv 2409.18869) on captioned digits: codes in the text's vocabulary, with their size and ends of rows.

What: `configs/digits.py` whose images are 64 codes each, one of 17 grey levels per pixel (`codec.kind` 'levels', which
needs no training): BOI, '8*8', a separator, the rows with an end after each, the end of the frame, EOI. The loss of a
code counts half. Drawings are guided by the difference to a negative prompt. No biases, one causal text. For the codes
of a trained codec set `codec`, `layout.image`'s spelling (`codes`, `grids`) and the stream's vocabulary.
Command: python -m transfusion.train --config configs/emu3.py --workdir runs/emu3
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
`configs/emu3.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig, text
from transfusion.codecs.levels import LevelsConfig
from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment

FORMS = ("", "debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")
LEVELS = LevelsConfig(17)


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE)
    grid = dense.streams["image"].grid
    layout = layouts.emu3(LEVELS.codes, (grid,))
    # Two documents a row, as in the dense experiment; a vocabulary that is a multiple of 8, to be split over a mesh.
    budget = dense.streams["text"].budget + 2 * len(layout["image"][0].spelling.template(grid))
    vocabulary = text.VOCABULARY + -(-LEVELS.codes // 8) * 8
    words = dataclasses.replace(dense.streams["text"], vocabulary=vocabulary, budget=budget, weight=1.0)
    # As published, but for the top 2,048 of 32,768 codes. The negative prompt is ours: theirs is of photographs.
    sampling = dataclasses.replace(dense.sampling, guidance=3.0, negative="a handwritten")
    return to_config_dict(
        dataclasses.replace(
            dense, streams={"text": words}, layout=layout, codec=CodecConfig("levels", levels=LEVELS), sampling=sampling
        )
    )
