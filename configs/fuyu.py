"""Fuyu (adept.ai/blog/fuyu-8b) on digits that are read: raw patches enter a causal language model by one linear map.

What: `configs/digits.py` that only writes captions. There is no image encoder: each patch of pixels is multiplied by
one matrix and takes the place of a word's vector, and attention is causal over patches as over text. Only captions have
a loss. As released, the model has LayerNorms, biases, normed queries and keys, one hidden layer without a gate in each
feed-forward layer, and rotary positions that count patches like words.
Original: a learned image-newline token ends each row of patches and tells images of different widths apart. Here all
images have one size, so that a patch's place says its row already. There is no such token, because the layout table
puts runs of tokens one after the other and cannot put a token of another stream inside a run. EOI follows the patches
where the original has the token that begins its text. The hidden layer has a GELU in place of a squared ReLU, a head is
rotated as a whole and not in one half, and each head has its own norm of queries and keys.
Data: python -m transfusion.prepare --data_dir data digits
Command: python -m transfusion.train --config configs/fuyu.py --workdir runs/fuyu
  python -m transfusion.evaluate --workdir runs/fuyu
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/fuyu.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.programs import load_experiment
from transfusion.sequence import Run, Stream, text

FORMS = ("", "debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:{form}" if form else DENSE)
    drawn = dense.streams["image"]
    trunk = dataclasses.replace(
        dense.model, norm="layer", qk_norm="layer", biases=("qkv", "out", "ffn"), ffn_kind="gelu",
        ffn=4 * dense.model.width, rope_theta=25_000.0,
    )  # fmt: skip
    patches = Stream(
        embed="linear", head="none", objective="none", attention="causal",
        channels=drawn.channels, patch=drawn.patch, grid=drawn.grid, budget=drawn.budget,
    )  # fmt: skip
    return to_config_dict(
        dataclasses.replace(
            dense,
            model=trunk,
            streams={"text": dense.streams["text"], "image": patches},
            layout={"text": (Run("text"),), "image": (Run("image", closer=text.EOI, loss=False),)},
            data=dataclasses.replace(dense.data, caption_first=0.0),
        )
    )
