"""NextStep-1 (arXiv 2508.10711) on captioned digits: a causal model writes patches of pixels one after another, and a
small network denoises each.

What: `configs/digits.py` whose patches are predicted like words. The trunk reads clean patches in raster order; its
output at one patch conditions a small network, which draws the next by flow matching (MAR's diffusion head). The trunk
runs once per patch and never sees noise, so that the same tokens are read by a caption.
Original: it begins with Qwen2.5-14B, and has the latents of an autoencoder with noise in them. MAR predicts its tokens
in a random order with a bidirectional trunk, which this library has no form of.
Command: python -m transfusion.train --config configs/nextstep.py --workdir runs/nextstep
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/nextstep.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment
from transfusion.sequence import Run, text

FORMS = ("", "debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:{form}" if form else DENSE)
    image = dense.streams["image"]
    image = dataclasses.replace(
        image, head="token_flow", objective="token_flow", attention="causal", time="none",
        coder_width=dense.model.width, budget=image.max_items * (image.tokens_per_item + 1),
    )  # fmt: skip
    drawn = Run("image", opener=text.BOI, closer=text.EOI)
    read = dataclasses.replace(drawn, time_low=1.0, loss=False)
    return to_config_dict(
        dataclasses.replace(
            dense,
            streams=dense.streams | {"image": image},
            layout={"text": (Run("text"),), "image": (drawn,), "image/context": (read,)},
        )
    )
