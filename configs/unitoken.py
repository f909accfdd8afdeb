"""UniToken (arXiv 2504.04423) on captioned digits: an image is read as codes and as a vision tower's tokens.

What: `configs/chameleon.py`, but the tokens of a small Vision Transformer follow the codes of an image behind a
separator. They are no targets: drawn images are codes only.
Original: its tower is SigLIP's and is trained before the rest. Here the tower starts at random and is trained with it.
Command: python -m transfusion.train --config configs/unitoken.py --workdir runs/unitoken
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/unitoken.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.config import check_form, to_config_dict
from transfusion.model.vit import ViTConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Stream

FORMS = ("", "debug")
CODES = pathlib.Path(__file__).with_name("chameleon.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    codes = load_experiment(f"{CODES}:debug" if form == "debug" else CODES)
    source = next(iter(codes.data.sources.values()))
    channels, pixels = source.channels or 1, source.resolution or 8
    width, grid, patch = codes.model.width // 2, (4, 4), pixels // 4
    tower = ViTConfig(
        width=width, ffn=2 * width, layers=2, heads=2, patch=patch, channels=channels, grid=grid, pool=False
    )
    semantic = Stream(
        embed="vit", head="none", objective="none", source="pixels", channels=channels, patch=patch,
        grid=(pixels, pixels), attention="causal", budget=2 * grid[0] * grid[1],
    )  # fmt: skip
    spelling = codes.spec.spelling
    return to_config_dict(
        dataclasses.replace(
            codes,
            model=dataclasses.replace(codes.model, towers={"semantic": tower}),
            streams=codes.streams | {"semantic": semantic},
            layout=layouts.unitoken(spelling.codes, spelling.grids[0]),
        )
    )
