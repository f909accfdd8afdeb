"""Experts that a router chooses for each token, beside a shared one, on captioned digits.

What: `configs/digits.py` with feed-forward layers as the survey proposes them (arXiv 2409.14993, section IV-B2, figure
10b). Each token passes one shared layer and takes 2 of 8 routed ones; tokens of text and of images compete for the same
experts, whose loads are evened out without an auxiliary loss (arXiv 2408.15664). A token costs as many FLOPs as in the
dense model, but for the router, with three times the weights of feed-forward layers. The report shows which experts
each modality takes.
Command: python -m transfusion.train --config configs/experts.py --workdir runs/experts
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/experts.py:mot` is a Mixture-of-Transformers, in which each token passes a shared layer, its modality's
and 1 of 8 routed ones. `configs/experts.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.model.experts import FeedForwardConfig
from transfusion.programs import load_experiment

FORMS = ("", "debug", "mot")
CONFIGS = pathlib.Path(__file__).parent


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    base = load_experiment(CONFIGS / {"": "digits.py", "debug": "digits.py:debug", "mot": "mot.py"}[form])
    # Of each layer that a token passes: a third of the dense model's F.
    width = 16 if form == "debug" else base.model.width
    layers = {
        "shared": FeedForwardConfig("shared", ffn=width),
        "routed": FeedForwardConfig("routed", ffn=width, experts=8, top=1 if form == "mot" else 2, score="sigmoid"),
    }
    absent = () if form == "mot" else ("trunk",)
    model = dataclasses.replace(base.model, ffn=width, feed_forwards=layers, ffn_absent=absent)
    return to_config_dict(dataclasses.replace(base, model=model))
