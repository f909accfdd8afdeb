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
# # First steps
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/first_steps.ipynb)
#
# A small model that writes captions byte by byte and draws handwritten digits by flow matching, both with the same
# Transformer. On two CPU cores this notebook takes about four minutes, of which two are training.

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

import transfusion
from transfusion import pictures
from transfusion.data import builders, documents
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.data.sources import open_source
from transfusion.sequence import text
from transfusion.sequence.rows import expand
from transfusion.tasks import make_task

work = pathlib.Path(os.environ.get("TRANSFUSION_NOTEBOOK_FOLDER", "."))
steps = int(os.environ.get("TRANSFUSION_NOTEBOOK_STEPS", 700))

# %% [markdown]
# ## The data
#
# 1,797 digits of 8 x 8 grey pixels, a real data set that needs no download. A source gives records: an image, a caption, a
# label.

# %%
builders.prepare("digits", str(work / "data"))
experiment = transfusion.experiment("digits", steps=steps, **{"data.data_dir": str(work / "data")})
source = open_source(experiment.data.sources["digits"], experiment.data.data_dir)
records = [source[i] for i in range(16)]
pictures.grid([record["image"] for record in records], 8, [record["caption"] for record in records])

# %% [markdown]
# ## From a record to streams
#
# A record becomes a document: segments in reading order. The layout of the config says into which tokens each segment
# turns, and every token belongs to a stream. Here are the tokens of one document: a caption, then its image in 16
# patches of 2 x 2 pixels, between a token that opens it (BOI, 259) and one that closes it (EOI, 260).

# %%
task = make_task(experiment)
document = documents.to_document(records[0], documents.DocumentChoice())
pieces = expand(document, task.spec).pieces
print("reading:", [segment.kind for segment in document])
print("text:   ", pieces["text"]["tokens"])
print("        ", repr(text.decode(pieces["text"]["tokens"])))
print("image:  ", pieces["image"]["values"].shape, "(tokens, numbers of a patch)")
print("order of the image's tokens in the document:", pieces["image"]["order"])

# %% [markdown]
# ## A packed row and its mask
#
# Several documents share a row, stored stream by stream. One rule decides who sees whom: words see what came before,
# the patches of an image see each other in both directions, and no document sees another.

# %%
with task.open_data(experiment) as batches:
    batch = next(batches)
    efficiency = batches.stats()["efficiency"]
print({name: f"{share:.0%} of the slots used" for name, share in efficiency.items()})
pictures.mask_picture(batch, task.spec)

# %% [markdown]
# ## Two minutes of training
#
# The loss is that of the next byte plus five times that of the image's velocity. You may interrupt the cell at any time;
# run it again, and it goes on.

# %%
run = transfusion.train(experiment, work / "runs" / "first_steps")
run.plot("text_loss", "image_loss")

# %% [markdown]
# ## Text to image
#
# The caption is read once; then an ordinary differential equation carries noise to an image in 25 steps.

# %%
captions = [f"a handwritten {name}" for name in DIGIT_WORDS]
drawn = run.draw(captions, guidance=2.0, seed=0)
pictures.grid(drawn, 5, captions)

# %% [markdown]
# The way of one of them, from noise at t = 0. Below is what the model takes the picture to be at each moment.

# %%
run.trajectory("a handwritten seven", guidance=2.0)

# %% [markdown]
# ## Image to text
#
# The same weights, the other way: held-out images and what the model says of them.

# %%
held_out = open_source(experiment.eval.sources["digits"], experiment.data.data_dir)
images = [held_out[i]["image"] for i in range(10)]
pictures.grid(images, 5, run.caption(images))

# %% [markdown]
# ## What next
#
# - The same digits to the end, with scores and a report: `make demo`.
# - A page on which you chat with this model and watch it draw: `transfusion demo --workdir runs/first_steps`.
# - Your own images: the notebook `own_images`.
# - Two systems side by side: the notebook `compare_and_scale`.
