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
# # Your own images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/own_images.ipynb)
#
# A folder of pictures and a table of captions become a model that draws such pictures and captions them. The config is
# written for you: `transfusion new` looks at the folder and chooses sizes, budgets and the share that is held out.
#
# The folder here is painted by the first cells, so that the notebook needs no download. Put your own in its place.

# %%
# Installs the library where it is missing, as in Colab. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("transfusion") is None:
    library = "transfusion[demo] @ git+https://github.com/transfusion-jax/transfusion"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library], check=True)

# %%
import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw

import transfusion
from transfusion import pictures

work = pathlib.Path(os.environ.get("TRANSFUSION_NOTEBOOK_FOLDER", "."))
steps = int(os.environ.get("TRANSFUSION_NOTEBOOK_STEPS", 600))

# %% [markdown]
# ## A folder of pictures
#
# 300 pictures of a shape in a colour, and `captions.csv` with the columns `file_name` and `caption`. A folder of
# `.txt` files beside the images, a `metadata.jsonl`, or one folder per class would do as well.

# %%
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = {"disc": "ellipse", "square": "rectangle"}


def paint(colour: str, shape: str, chance: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (48, 48), "white")
    x, y, side = chance.integers(4, 16), chance.integers(4, 16), chance.integers(18, 28)
    getattr(ImageDraw.Draw(picture), SHAPES[shape])((x, y, x + side, y + side), fill=colour)
    return picture


photos = work / "photos"
photos.mkdir(parents=True, exist_ok=True)
chance, rows = np.random.default_rng(0), []
for number in range(300):
    colour, shape = str(chance.choice(COLOURS)), str(chance.choice(list(SHAPES)))
    paint(colour, shape, chance).save(photos / f"{number}.png")
    rows.append((f"{number}.png", f"a {colour} {shape}"))
with open(photos / "captions.csv", "w", newline="") as file:
    csv.writer(file).writerows([("file_name", "caption"), *rows])

# %%
pictures.grid(
    [np.asarray(Image.open(photos / name)) for name, _ in rows[:12]], 6, [caption for _, caption in rows[:12]]
)

# %% [markdown]
# ## A config for it
#
# The command prints what it chose and why: the side of the pictures, the size of a patch, how many pictures share a row,
# how full the rows will be, and how long the training may take.

# %%
config = work / "photos_config.py"
command = ["transfusion.new", "--images", str(photos), "--output", str(config), "--resolution=16", "--overwrite"]
found = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
print(found.stdout, found.stderr[-2000:])
found.check_returncode()

# %% [markdown]
# ## Train
#
# The picture below grows while it trains. `steps` is small here; the config has a better number for the whole training.

# %%
run = transfusion.train(config, work / "runs" / "photos", steps=steps, **{"eval.every": 0})
run.plot()

# %% [markdown]
# ## Draw and caption
#
# Every combination of a colour and a shape, and the captions that the model gives to its own drawings.

# %%
prompts = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]
drawn = run.draw(prompts, guidance=2.0, seed=1)
pictures.grid(drawn, 6, prompts)

# %%
fresh = [np.asarray(paint(colour, shape, chance)) for shape in SHAPES for colour in COLOURS]
pictures.grid(fresh, 6, run.caption(fresh))

# %% [markdown]
# ## What next
#
# - More steps, and larger pictures: raise `--resolution`. A side of 64 pixels wants a GPU.
# - Words that were never together in training: leave "a purple disc" out of the table and ask for it.
# - `transfusion evaluate --workdir runs/photos` and `transfusion report --workdir runs/photos`.
