"""Three widths of the digits model, 200 steps each: does width help in so short a run?"""

import pathlib

from transfusion.sweep import grid

CONFIG = str(pathlib.Path(__file__).resolve().parents[2] / "configs" / "digits.py")
SHORT = {
    "steps": 200,
    "optim.warmup": 20,
    "checkpoint.every": 100,
    "eval.every": 100,
    "eval.samples": 100,
    "eval.captions": 100,
    "model.layers": 2,
}
WIDTHS = ((32, 2), (64, 4), (128, 8))


def get_sweep():
    """(name, config file, fields that differ)."""
    return grid(CONFIG, {("model.width", "model.heads"): WIDTHS}, SHORT)
