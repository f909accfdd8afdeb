"""JanusFlow (arXiv 2411.07975) on captioned digits: images have one way in to be read and another to be drawn.

What: `configs/digits.py` with a plain causal language model. An image that is read enters by a small Vision Transformer
and a connector. An image that is drawn enters by ConvNeXt blocks, whose output also goes around the trunk to the blocks
that predict the velocity. A token with the noise level precedes the patches, and the noise level scales and shifts the
blocks. Only an image's own tokens see its noised patches; later tokens see it as the tower reads it.
Original: its tower is SigLIP's, and the trunk's features learn to agree with the tower's. Here the tower starts at
random and nothing agrees. Its noise token takes the place of BOI; here it follows BOI, which the text before an image
learns to write.
Command: python -m transfusion.train --config configs/janusflow.py --workdir runs/janusflow
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/janusflow.py:understanding` has only the way in to be read, as in Janus (arXiv 2410.13848): it writes
captions and draws nothing. `:debug` and `:understanding_debug` train 20 steps of each in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.model.vit import ViTConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Stream

FORMS = ("", "debug", "understanding", "understanding_debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:debug" if form.endswith("debug") else DENSE)
    return to_config_dict(reads(dense) if form.startswith("understanding") else draws(dense))


def reads(dense: Experiment) -> Experiment:
    """The experiment that only reads images: all of them stand before their captions."""
    image, width = dense.streams["image"], dense.model.width // 2
    tower = ViTConfig(
        width=width, ffn=2 * width, layers=2, heads=2, patch=image.patch, channels=image.channels,
        grid=tuple(side // image.patch for side in image.grid), pool=False,
    )  # fmt: skip
    semantic = Stream(
        embed="vit", head="none", objective="none", source="pixels", channels=image.channels, patch=image.patch,
        grid=image.grid, budget=image.budget,
    )  # fmt: skip
    return dataclasses.replace(
        dense,
        model=dataclasses.replace(dense.model, towers={"semantic": tower}),
        streams={"text": dense.streams["text"], "semantic": semantic},
        layout=layouts.janus(drawn=""),
        data=dataclasses.replace(dense.data, caption_first=0.0),
    )


def draws(dense: Experiment) -> Experiment:
    """The experiment that also draws."""
    read, image = reads(dense), dense.streams["image"]
    image = dataclasses.replace(
        image, embed="convnext", head="convnext", time="token_coder", attention="causal", table="none",
        coder_width=3 * dense.model.width // 8, visible_to=("image",), budget=image.tokens_per_item + 1,
    )  # fmt: skip
    # One image of each kind: a row holds as many as in the dense experiment, and a step as many documents.
    semantic = dataclasses.replace(read.streams["semantic"], budget=dense.streams["image"].tokens_per_item)
    return dataclasses.replace(
        read,
        streams={"text": dense.streams["text"], "image": image, "semantic": semantic},
        layout=layouts.janus(),
        # Some images are drawn and read, so that the model learns how to go on after its own.
        data=dataclasses.replace(dense.data, both=0.1),
    )
