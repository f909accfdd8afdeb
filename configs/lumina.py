"""Lumina-DiMOO (arXiv 2510.06308) and LLaDA (arXiv 2502.09992) on captioned digits: text is drawn by unmasking, too.

What: `configs/showo.py`, whose answers are not written from left to right either. The text behind an image is an item
of 32 places: some of them are masked in training, all of these are predicted at once, and the places of an answer see
each other, the image and all that is before it. Places behind the text hold the end of the document, which is learned
as LLaDA learns it. As in LLaDA the share of masked places is even, and an answer's loss is divided by it, so that it
bounds the likelihood; images are masked like that, too. A text before an image is a prompt and has no loss. Drawing
fills four blocks of 8 places one after the other (`sampling.unmask_blocks`), and keeps in each step the most certain
ones.
Original: both begin with LLaDA-8B, have text and codes in one vocabulary, and learn from text alone, too; Lumina-DiMOO
stops at the first block that ends the text. Here text and codes have tables and heads of their own.
Data: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  This trains the codec.
Command: python -m transfusion.train --config configs/lumina.py --workdir runs/lumina
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/lumina.py:debug` trains 20 steps in seconds, on the grey levels of 8x8 pixels, which need no codec.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.masked import MaskedConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Run, Stream, text

FORMS = ("", "debug")
MASKED = pathlib.Path(__file__).with_name("showo.py")
PLACES = 32


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    masked = load_experiment(f"{MASKED}:{form}" if form else MASKED)
    words, image = masked.streams["text"], masked.streams["image"]
    answer = Stream(
        vocabulary=words.vocabulary, grid=(PLACES,), fill=text.EOS, embed="token", head="token", objective="masked",
        attention="block", budget=2 * PLACES,
    )  # fmt: skip
    layout = {
        "text": (Run("text", loss=False),),
        "text/target": (Run("answer", opener=text.SEP, boundary="inside"),),
        "image": masked.layout["image"],
        "image/context": masked.layout["image/context"],
    }
    return to_config_dict(
        dataclasses.replace(
            masked,
            streams={"text": words, "answer": answer, "image": image},
            layout=layout,
            objectives=ObjectivesConfig(masked=MaskedConfig("linear", "inverse")),
            sampling=dataclasses.replace(masked.sampling, unmask_blocks=4),
        )
    )
