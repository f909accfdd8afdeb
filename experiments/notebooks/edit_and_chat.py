# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Edit and chat
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/edit_and_chat.ipynb)
#
# A model that is asked turn by turn: it draws a digit, and then changes it as it is told. What it needs is data with such
# turns, and nothing else: no part of the model is made for editing.

# %%
# Installs the library where it is missing, as in Colab. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("transfusion") is None:
    library = "transfusion[demo] @ git+https://github.com/transfusion-jax/transfusion"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library], check=True)

# %%
import os
import pathlib

import numpy as np

import transfusion
from transfusion import pictures
from transfusion.data import builders
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.data.sources import open_source

work = pathlib.Path(os.environ.get("TRANSFUSION_NOTEBOOK_FOLDER", "."))
steps = int(os.environ.get("TRANSFUSION_NOTEBOOK_STEPS", 1200))

# %% [markdown]
# ## Conversations
#
# Each record is a list of segments with a turn: the user asks for a digit, the assistant draws it, the user asks for a
# change, the assistant draws the changed digit. Only the assistant's turns are learned.

# %%
builders.prepare("digits", str(work / "data"))
source = open_source(transfusion.experiment("digits").data.sources["digits"], str(work / "data"))
EDITS = {
    "Make it negative.": lambda image: 255 - image,
    "Mirror it.": lambda image: image[:, ::-1],
    "Turn it upside down.": lambda image: image[::-1],
}


def conversation(image: np.ndarray, word: str, edit: str) -> list[dict]:
    return [
        {"text": f"Draw a {word}.", "turn": "user"},
        {"image": image, "turn": "assistant"},
        {"text": edit, "turn": "user"},
        {"image": np.ascontiguousarray(EDITS[edit](image)), "turn": "assistant"},
    ]


words = [record["caption"].split()[-1] for record in (source[i] for i in range(len(source)))]
edits = [list(EDITS)[i % len(EDITS)] for i in range(len(source))]
conversations = [conversation(source[i]["image"], words[i], edits[i]) for i in range(len(source))]

# %% [markdown]
# ## Train
#
# The config is that of the digits; a row has room for the text of a conversation, and for its two images. The user's
# turns stand in a chat template, `User: ...` and `Assistant: ...`.

# %%
fields = {"streams.text.budget": 112, "streams.image.budget": 32, "data.drop_caption": 0.0}
run = transfusion.train(
    "digits", work / "runs" / "chat", data=conversations, steps=steps, batch_size=16, **fields, **{"eval.every": 0}
)
run.plot()

# %% [markdown]
# ## Chat
#
# `run.chat()` keeps what was read in the model's cache, so each turn reads only what is new. `draw=True` asks for an image;
# without it the model decides by itself, as it writes the token that opens an image or does not.

# %%
shown, captions = [], []
for word in DIGIT_WORDS[:6]:
    chat = run.chat(seed=1)
    for said in (f"Draw a {word}.", "Make it negative."):
        (image,) = (part for part in chat.say(said, draw=True, max_tokens=0) if not isinstance(part, str))
        shown.append(image)
        captions.append(said)
pictures.grid(shown, 4, captions)

# %% [markdown]
# ## Edit pictures of your own
#
# The picture may also come from you. These digits were held out. The first row is given, the others are answers.

# %%
held_out = open_source(transfusion.experiment("digits").eval.sources["digits"], str(work / "data"))
given = [held_out[i]["image"] for i in range(6)]
rows = list(given)
for edit in EDITS:
    rows += [
        next(part for part in run.chat().say(image, edit, draw=True, max_tokens=0) if not isinstance(part, str))
        for image in given
    ]
pictures.grid(rows, 6, [""] * 6 + [edit for edit in EDITS for _ in given])

# %% [markdown]
# ## What next
#
# - `data.edit` makes examples of editing from captioned images without conversations, and `configs/bagel.py` holds a
#   noised and a clean copy of each image, which edits more faithfully.
# - `docs/your_own_data.md` shows the form of such records in files, and twelve public forms that are read.
# - `transfusion demo --workdir runs/chat` is a page for it.
