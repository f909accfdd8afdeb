"""NextStep-1 (arXiv 2508.10711) on captioned digits: a causal model writes patches of pixels one after another, and a
small network denoises each. MAR (arXiv 2406.11838): the same in a random order, several at once.

What: `configs/digits.py` whose patches are predicted like words. The trunk reads clean patches in raster order; its
output at one patch conditions a small network, which draws the next by flow matching (MAR's diffusion head). The trunk
runs once per patch and never sees noise, so that the same tokens are read by a caption.
Original: it begins with Qwen2.5-14B, and has the latents of an autoencoder with noise in them.
Command: python -m transfusion.train --config configs/nextstep.py --workdir runs/nextstep
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: in `configs/nextstep.py:mar` a share of an image's patches is hidden, and the outputs of a trunk that sees in
both directions condition the small network in their places (MAR, which draws classes: its encoder and decoder, and its
greater share of hidden patches, are left out). `:debug` and `:mar_debug` train 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.programs import load_experiment
from transfusion.sequence import Run, text

FORMS = ("", "debug", "mar", "mar_debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    size = form.removeprefix("mar").removeprefix("_")
    dense = load_experiment(f"{DENSE}:{size}" if size else DENSE)
    return to_config_dict(mar(dense) if form.startswith("mar") else nextstep(dense))


def nextstep(dense: Experiment) -> Experiment:
    """The experiment whose patches are written one after another."""
    image = dense.streams["image"]
    image = dataclasses.replace(
        image, head="token_flow", objective="token_flow", attention="causal", time="none",
        coder_width=dense.model.width, budget=image.max_items * (image.tokens_per_item + 1),
    )  # fmt: skip
    drawn = Run("image", opener=text.BOI, closer=text.EOI)
    read = dataclasses.replace(drawn, time_low=1.0, loss=False)
    return dataclasses.replace(
        dense,
        streams=dense.streams | {"image": image},
        layout={"text": (Run("text"),), "image": (drawn,), "image/context": (read,)},
    )


def mar(dense: Experiment) -> Experiment:
    """The experiment whose patches are hidden and revealed."""
    image = dataclasses.replace(
        dense.streams["image"], head="token_flow", objective="masked_flow", time="none",
        coder_width=dense.model.width,
    )  # fmt: skip
    return dataclasses.replace(
        dense,
        streams=dense.streams | {"image": image},
        layout=layouts.showo(),
        sampling=dataclasses.replace(dense.sampling, unmask_steps=8),
    )
