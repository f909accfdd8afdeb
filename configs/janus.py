"""Janus (arXiv 2410.13848) on captioned digits: images are read by a vision tower and drawn as codes, all causal.

What: `configs/showo.py` whose codes are written one after another, like text. Codes enter by a small table and two
dense layers, and a head of their own with a hidden layer predicts them. BOI is one of their tokens, because it predicts
the first code. An image that is read enters by a small Vision Transformer and a connector, as in
`configs/janusflow.py`. Guidance compares with a prompt whose text is padding, which attention sees; captions that
training leaves out are padding, too. A drawn image can be read once it is decoded: in the next prompt.
Original: its tower is SigLIP's; here the tower starts at random. Janus-Pro (arXiv 2501.17811) is the same model with
more and other data, and larger (1B: 24 layers of width 2,048; 7B: 30 layers of 4,096). It has no form here.
Data: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  This trains the codec.
Command: python -m transfusion.train --config configs/janus.py --workdir runs/janus
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/janus.py:debug` trains 20 steps in seconds, on the grey levels of 8x8 pixels, which need no codec.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.model.vit import ViTConfig
from transfusion.programs import load_experiment
from transfusion.sequence import ConnectorConfig, Stream

FORMS = ("", "debug")
MASKED = pathlib.Path(__file__).with_name("showo.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    return to_config_dict(two_ways(load_experiment(f"{MASKED}:{form}" if form else MASKED)))


def two_ways(masked: Experiment) -> Experiment:
    """The experiment whose tower reads images in as many patches as they have codes."""
    codes, width = masked.streams["image"], masked.model.width // 2
    source = next(iter(masked.data.sources.values()))
    channels, pixels = source.channels or 1, source.resolution or 8
    patch = pixels // codes.grid[0]
    image = dataclasses.replace(
        codes, channels=8, embed="codes", head="mlp", connector=ConnectorConfig(activation="gelu"),
        objective="next_token", attention="causal",
        visible_to=("image",), budget=codes.budget // 2 + 1,
    )  # fmt: skip
    words = dataclasses.replace(masked.streams["text"], weight=1.0)
    grid = (pixels // patch, pixels // patch)
    tower = ViTConfig(
        width=width, ffn=2 * width, layers=2, heads=2, patch=patch, channels=channels, grid=grid, pool=False
    )
    semantic = Stream(
        embed="vit", head="none", objective="none", source="pixels", channels=channels, patch=patch,
        grid=(pixels, pixels), budget=grid[0] * grid[1],
    )  # fmt: skip
    return dataclasses.replace(
        masked,
        model=dataclasses.replace(masked.model, towers={"semantic": tower}),
        streams={"text": words, "image": image, "semantic": semantic},
        layout=layouts.janus(codes=True),
        data=dataclasses.replace(masked.data, null_caption="pad"),
        init=InitConfig(),  # the codes' vectors are its own
        # The original's 5 exaggerates what so small a model is sure of: of its drawings 89 % are read right, not 100 %.
        sampling=dataclasses.replace(masked.sampling, guidance=1.5, without_text="pad"),
    )
