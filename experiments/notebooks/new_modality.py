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
# # A new modality: the arm of a robot
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/new_modality.ipynb)
#
# The library has never seen the joints of a robot arm. A few lines teach a model to move one as it is told, and to say what
# a movement is. There is nothing special about joints: any numbers over time, in a plane or in space go the same way.

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

import matplotlib.pyplot as plt
import numpy as np

import transfusion
from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.sources import SOURCES
from transfusion.latents import CODECS, Codec
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text

work = pathlib.Path(os.environ.get("TRANSFUSION_NOTEBOOK_FOLDER", "."))
steps = int(os.environ.get("TRANSFUSION_NOTEBOOK_STEPS", 600))

# %% [markdown]
# ## Where the data come from
#
# A source is a class with a length and records by index. Its records hold the angles under a key of their own, `"arm"`.
# Here the arm waves: 16 moments of 3 joints, in degrees.

# %%
WAVES = {"wave to the left": 1, "wave to the right": -1, "stand still": 0}


class Trajectories(list):
    """Records: 16 moments of 3 joints in degrees, and what they do."""

    def __init__(self, config, data_dir, pixel_limit):
        chance = np.random.default_rng(0)
        for i in range(300):
            words = list(WAVES)[i % 3]
            height = WAVES[words] * chance.uniform(30, 60)
            angles = height * np.sin(np.linspace(0, np.pi, 16))[:, None] * [1, 0.5, 0.2]
            angles = angles + chance.normal(0, 1, angles.shape)
            self.append({"id": f"arm {i}", "arm": angles, "caption": words})


SOURCES["trajectories"] = Trajectories

# %% [markdown]
# ## What the model sees of them
#
# A codec turns the data into latents of about unit size, and back. `[T, C]` is a series, `[h, w, C]` a picture and
# `[T, h, w, C]` a clip.

# %%
CODECS["degrees"] = lambda config: Codec(encode=lambda angles: angles / 45, decode=lambda latents: latents * 45)

# %% [markdown]
# ## The streams
#
# A stream says how its tokens enter the model, what they see, and what they learn: these lie in blocks of 8 tokens that
# see each other in both directions, and learn to become joints from noise. The layout gives segments of the kind `arm` to
# that stream.

# %%
linear = {"embed": "linear", "head": "linear", "objective": "continuous", "time": "added"}
arm = Stream(**linear, attention="block", channels=3, patch=2, grid=(16,), budget=32, weight=5.0)
experiment = Experiment(
    steps=steps,
    log_every=max(1, steps // 10),
    model=TransformerConfig(width=64, layers=3, heads=2),
    layout=layouts.transfusion(kind="arm"),
    streams={"text": Stream(vocabulary=text.VOCABULARY, budget=96), "arm": arm},
    codec=CodecConfig("degrees"),
    data=DataConfig(sources={"mine": SourceConfig(kind="trajectories")}, caption_first=0.5),
    optim=OptimConfig(learning_rate=2e-3, warmup=min(50, steps // 2)),
    sampling=SamplerConfig(steps=25, guidance=2.0, temperature=0.0, max_tokens=32),
)
run = transfusion.train(experiment, work / "runs" / "arm")
run

# %% [markdown]
# ## From words to movements

# %%
drawn = run.draw([words for words in WAVES for _ in range(4)], seed=1)
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for axis, words, moves in zip(axes, WAVES, np.split(np.asarray(drawn), 3), strict=True):
    axis.plot(moves[..., 0].T)
    axis.set(title=words, xlabel="moment", ylabel="first joint, degrees")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## From movements to words

# %%
real = Trajectories(None, "", 0)
for record in real[:6]:
    print(f"{record['caption']:<20} the model says: {run.caption([record['arm']])[0]}")

# %% [markdown]
# ## What next
#
# - `docs/new_modality.md` has the same as a config file for `transfusion train`, and the other tables to which a row can
#   be added: embeds, heads, objectives, solvers.
# - Several media in one model: `configs/omni_digits.py`.
