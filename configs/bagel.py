"""BAGEL (arXiv 2505.14683) on captioned digits: two experts, and an image up to three times.

What: `configs/digits.py` with an expert that understands (text, a vision tower's tokens, BOI and EOI) and one that
generates (latents). What is drawn is noised latents that nothing else sees; what stays to be read is clean latents and
the tower's tokens. One rotary index per image; fixed 2-D sine and cosine tables inside it. The text before an image
learns to open it, which the original does not.
Command: python -m transfusion.train --config configs/bagel.py --workdir runs/bagel
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
`configs/bagel.py:edit` adds examples of editing ('negative', 'mirrored', 'upside down'), which alone have images as
conditions, and so their dropout and a guidance by images:
  python -m transfusion.sample --workdir runs/bagel --prompt '<image:in.png>negative' --output out.png
`configs/bagel.py:debug` trains 20 steps of it in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.model.vit import ViTConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Stream

FORMS = ("", "debug", "edit")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    experiment = twice(load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE))
    if form:
        experiment = dataclasses.replace(
            experiment,
            data=dataclasses.replace(experiment.data, edit=0.4),
            sampling=dataclasses.replace(experiment.sampling, image_guidance=1.5, renorm="channel"),
        )
    return to_config_dict(experiment)


def twice(dense: Experiment) -> Experiment:
    """The experiment with an expert each for understanding and generation, and a vision tower of half the width."""
    width, patch = dense.model.width // 2, 2
    image = dense.streams["image"]
    tower = ViTConfig(
        width=width, ffn=2 * width, layers=2, heads=2, patch=patch, channels=image.channels,
        grid=tuple(side // patch for side in image.grid), pool=False,
    )  # fmt: skip
    noised = dataclasses.replace(image, expert="generation")
    streams = {
        "text": dataclasses.replace(dense.streams["text"], expert="understanding", budget=72),
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none"),
        "semantic": Stream(
            embed="vit", head="none", objective="none", attention="block", expert="understanding", source="pixels",
            channels=image.channels, patch=patch, grid=image.grid, budget=image.budget, table="sincos",
        ),
    }  # fmt: skip
    return dataclasses.replace(
        dense,
        model=dataclasses.replace(dense.model, qk_norm="rms", towers={"semantic": tower}),
        streams=streams,
        layout=layouts.bagel(),
        # Some images are drawn and read, so that the model learns how to go on after its own. Dropout as in the paper.
        data=dataclasses.replace(
            dense.data, both=0.1, drop_caption=0.1, drop_conditions={"semantic": 0.5, "clean": 0.1}
        ),
    )
