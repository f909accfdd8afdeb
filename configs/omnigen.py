"""OmniGen (arXiv 2409.11340) on captioned digits: one trunk, one time token, and a way in of their own for read images.

What: `configs/digits.py` in which a token with the noise level precedes the patches of a drawn image. It is causal like
text, and modulates the last layer. Images that are read are clean and enter by another linear layer. Text is causal,
every image is a block, and nothing else tells them apart.
Original: it learns no text; here captions are written, too.
Command: python -m transfusion.train --config configs/omnigen.py --workdir runs/omnigen
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/omnigen.py:edit` adds examples of editing, as in `configs/bagel.py`. `configs/omnigen.py:debug` trains
20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment

FORMS = ("", "debug", "edit")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE)
    image = dense.streams["image"]
    noised = dataclasses.replace(
        image, head="adaln", time="token_before", budget=image.max_items * (image.tokens_per_item + 1)
    )
    clean = dataclasses.replace(image, head="none", objective="none", time="none")
    experiment = dataclasses.replace(
        dense, streams={"text": dense.streams["text"], "image": noised, "clean": clean}, layout=layouts.omnigen()
    )
    if form:
        experiment = dataclasses.replace(
            experiment,
            data=dataclasses.replace(experiment.data, edit=0.4),
            sampling=dataclasses.replace(experiment.sampling, image_guidance=1.5),
        )
    return to_config_dict(experiment)
