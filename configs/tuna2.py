"""TUNA-2 (arXiv 2604.24763) on captioned digits: pixels enter without any encoder, to be read and to be drawn.

What: `configs/digits.py` where one linear map of patches is all that is before the trunk, for images that are read and
for those that are drawn, and where the trunk's outputs pass a second trunk, which the noise level modulates
(adaLN-zero), to pixels. The model predicts the image itself, and its loss is that of the velocity (arXiv 2511.13720).
An image that a caption follows is clean and no target.
Original: it begins with Qwen2.5-7B, and hides some patches of images in training, which this does not.
Command: python -m transfusion.train --config configs/tuna2.py --workdir runs/tuna2
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/tuna2.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import check_form, to_config_dict
from transfusion.model.config import Stage
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.programs import load_experiment

FORMS = ("", "debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:{form}" if form else DENSE)
    image = dense.streams["image"]
    budget = image.max_items * (image.tokens_per_item + 1)
    image = dataclasses.replace(image, head="adaln_rms", time="token_adaln", budget=budget)
    words = dataclasses.replace(dense.streams["text"], head_after="trunk")
    flow = dataclasses.replace(dense.model, layers=2, final_norm=False, qk_norm="rms", streams=("text", "image"))
    return to_config_dict(
        dataclasses.replace(
            dense,
            model=dataclasses.replace(dense.model, stages={"head": Stage(flow, "none")}),
            streams={"text": words, "image": image},
            layout=layouts.showo2(),
            objectives=ObjectivesConfig(
                # Few times are close to 1, where the velocity's error is many times that of the image.
                continuous={
                    "image": ContinuousConfig(
                        prediction="data", weighting="inverse_square", times="logit_normal", mean=-0.8, std=0.8
                    )
                }
            ),
        )
    )
