"""LLaDA (arXiv 2502.09992; with images LLaDA-V, arXiv 2505.16933, and Lumina-DiMOO, arXiv 2510.06308) on captioned
digits: an answer is not written from left to right, but unmasked.

What: `configs/janusflow.py:understanding`, where the text behind an image is an item of 32 places. Training hides an
even share of them, at least one, and predicts all hidden ones at once; the places see each other, the image and all
that is before it. The loss of an answer is divided by its hidden share, so that it bounds the likelihood. Behind the
text stands the end of the document, in all places that are left, and is learned, too. Drawing fills four blocks of 8
places one after the other, and keeps in each step the most certain ones.
Original: LLaDA-8B and SigLIP-2, and several turns. Lumina-DiMOO draws the codes of images in the same way (as
`configs/showo.py` does) and in one vocabulary, and stops at the first block that ends the text.
Command: python -m transfusion.train --config configs/llada.py --workdir runs/llada
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/llada.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.masked import MaskedConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Run, Stream, text

FORMS = ("", "debug")
READS = pathlib.Path(__file__).with_name("janusflow.py")
PLACES = 32


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    reads = load_experiment(f"{READS}:understanding_debug" if form else f"{READS}:understanding")
    words, seen = reads.streams["text"], reads.streams["semantic"]
    answer = Stream(
        vocabulary=words.vocabulary, grid=(PLACES,), fill=text.EOS, embed="token", head="token", objective="masked",
        attention="block", budget=seen.max_items * PLACES,
    )  # fmt: skip
    layout = {
        "text": (Run("text", loss=False),),
        "text/target": (Run("answer", opener=text.SEP, boundary="inside"),),
        "image": reads.layout["image"],
    }
    return to_config_dict(
        dataclasses.replace(
            reads,
            streams={
                "text": dataclasses.replace(words, weight=1.0),
                "answer": answer,
                "semantic": dataclasses.replace(seen, attention="block"),
            },
            layout=layout,
            objectives=ObjectivesConfig(masked=MaskedConfig("linear", "inverse")),
            sampling=dataclasses.replace(
                reads.sampling, steps=16, guidance=1.0, code_temperature=0.0, unmask_noise=0.0, unmask_blocks=4
            ),
        )
    )
