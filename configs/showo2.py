"""Show-o2 (arXiv 2506.15564) on captioned digits: images have two paths into the trunk, and a flow head behind it.

What: `configs/digits.py` whose latents enter by a small Vision Transformer (the semantic path) and by a linear layer,
which are fused. A token with the noise level precedes the patches, inside their span. The trunk's outputs of text and
image go through a second trunk, whose image tokens the noise level modulates (adaLN-zero), and then to the velocity.
Text is written from the first trunk. An image that only a caption follows is clean and no target. Each of several
images has its own noise level, but with probability 0.7 the earlier ones are clean and no targets. Captioned digits
have one image; examples of editing (`--config.data.edit=0.4`) have two.
Original: it distils the semantic path from SigLIP; here the path starts at random.
Command: python -m transfusion.train --config configs/showo2.py --workdir runs/showo2
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/showo2.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import check_form, to_config_dict
from transfusion.model.config import Stage
from transfusion.model.vit import ViTConfig
from transfusion.programs import load_experiment

FORMS = ("", "debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:{form}" if form else DENSE)
    image = dense.streams["image"]
    items, width = image.max_items, dense.model.width // 2
    tower = ViTConfig(
        width=width, ffn=2 * width, layers=2, heads=2, patch=image.patch, channels=image.channels,
        grid=tuple(side // image.patch for side in image.grid), final_norm=False, pool=False,
    )  # fmt: skip
    budget = items * (image.tokens_per_item + 1)
    image = dataclasses.replace(image, embed="dual", head="adaln_rms", time="token_adaln", table="none", budget=budget)
    text = dataclasses.replace(dense.streams["text"], head_after="trunk")
    flow = dataclasses.replace(dense.model, layers=2, final_norm=False, qk_norm="rms", streams=("text", "image"))
    model = dataclasses.replace(dense.model, towers={"image": tower}, stages={"head": Stage(flow, "none")})
    data = dataclasses.replace(dense.data, draw_earlier=0.3)
    streams = {"text": text, "image": image}
    return to_config_dict(dataclasses.replace(dense, model=model, streams=streams, layout=layouts.showo2(), data=data))
