"""LLaDA (arXiv 2502.09992; with images LLaDA-V, arXiv 2505.16933, and Lumina-DiMOO, arXiv 2510.06308) on captioned
digits: an answer is not written from left to right, but unmasked.

What: `configs/janusflow.py:understanding`, where the text behind an image is an item of 32 places. Training hides an
even share of them, at least one, and predicts all hidden ones at once; the places see each other, the image and all
that is before it. The loss of an answer is divided by its hidden share, so that it bounds the likelihood. Behind the
text stands the end of the document, in all places that are left, and is learned, too. Drawing fills four blocks of 8
places one after the other, and keeps in each step the most certain ones.
Original: LLaDA-8B and SigLIP-2, and several turns. Lumina-DiMOO has text and codes in one vocabulary, and stops at the
first block that ends the text.
Command: python -m transfusion.train --config configs/llada.py --workdir runs/llada
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/llada.py:dimoo` is `configs/showo.py` with such answers (Lumina-DiMOO): the codes of an image are drawn
and read, and answers and images are both unmasked. It needs the codec of `configs/vq_digits.py`.
`:debug` and `:dimoo_debug` train 20 steps in seconds, the latter on grey levels, which need no codec.
"""

import dataclasses
import pathlib

from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.masked import MaskedConfig
from transfusion.programs import load_experiment
from transfusion.sampling.config import KindConfig
from transfusion.sequence import Run, Stream, text

FORMS = ("", "debug", "dimoo", "dimoo_debug")
READS, MASKED = (pathlib.Path(__file__).with_name(name) for name in ("janusflow.py", "showo.py"))
PLACES = 32


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    if form.startswith("dimoo"):
        masked = load_experiment(f"{MASKED}:debug" if form.endswith("debug") else MASKED)
        return to_config_dict(with_answers(masked, masked.streams["image"].max_items))
    reads = load_experiment(f"{READS}:understanding_debug" if form else f"{READS}:understanding")
    seen = dataclasses.replace(reads.streams["semantic"], attention="block")
    reads = dataclasses.replace(reads, streams=reads.streams | {"semantic": seen})
    return to_config_dict(with_answers(reads, seen.max_items))


def with_answers(base: Experiment, answers: int) -> Experiment:
    """The experiment whose last texts are unmasked; a row holds so many `answers`."""
    words = base.streams["text"]
    answer = Stream(
        vocabulary=words.vocabulary, grid=(PLACES,), fill=text.EOS, embed="token", head="token", objective="masked",
        attention="block", budget=answers * PLACES,
    )  # fmt: skip
    layout = {
        "text": (Run("text", loss=False),),
        "text/target": (Run("answer", opener=text.SEP, boundary="inside"),),
    }
    how = KindConfig(steps=16, guidance=1.0, code_temperature=0.0, unmask_noise=0.0, unmask_blocks=4)
    return dataclasses.replace(
        base,
        streams={"text": dataclasses.replace(words, weight=1.0), "answer": answer}
        | {name: stream for name, stream in base.streams.items() if name != "text"},
        layout=base.layout | layout,
        objectives=ObjectivesConfig(masked=MaskedConfig("linear", "inverse")),
        sampling=dataclasses.replace(base.sampling, kinds={"text": how}),
    )
