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
# # Compare two systems, and fit a scaling law
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/compare_and_scale.ipynb)
#
# Is a Mixture-of-Transformers, which has weights of its own for each medium, better than a dense model? Both are short
# configs over the same code, so they can be trained on the same data for the same steps, and compared by held-out losses.
# Then three sizes of each give a law of how the loss falls with size and data.
#
# Models of this notebook are tiny, and one seed each is one draw: it shows how to ask, and not what the answer is.

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
import json
import os
import pathlib
import subprocess
import sys

import matplotlib.pyplot as plt

import transfusion
from transfusion.data import builders
from transfusion.model.unified import parameter_count

work = pathlib.Path(os.environ.get("TRANSFUSION_NOTEBOOK_FOLDER", "."))
steps = int(os.environ.get("TRANSFUSION_NOTEBOOK_STEPS", 300))
WIDTHS = (32, 64, 96)
SYSTEMS = {"dense": "digits", "mixture": "mot"}

# %% [markdown]
# ## Train
#
# Six short trainings. Each measures its held-out losses three times on the way. The learning rate stays constant, so
# that each of these is the loss of a training that could have ended there.

# %%
builders.prepare("digits", str(work / "data"))
every = max(1, steps // 3)
fields = {
    "data.data_dir": str(work / "data"), "eval.every": every, "log_every": every, "optim.schedule": "constant",
    "optim.warmup": min(50, every), "checkpoint.every": steps, "eval.batches": 16,
}  # fmt: skip
runs = {}
for system, config in SYSTEMS.items():
    for width in WIDTHS:
        name = f"{system}_{width}"
        changes = fields | {"model.width": width, "steps": 3 * every}
        runs[name] = transfusion.train(config, work / "runs" / name, show=False, **changes)

# %% [markdown]
# ## Compare
#
# At equal steps a mixture has twice the parameters, and a step of it costs as many FLOPs. So the curves over FLOPs are the
# fair ones.


# %%
def rows_of(name: str, run: transfusion.Run) -> list[dict]:
    """A row for each measurement of held-out losses."""
    shared = parameter_count(run.params) / (2 if name.startswith("mixture") else 1)  # what a token passes
    per_row = sum(stream.budget for stream in run.spec.streams.values())
    return [
        {
            "system": name.split("_")[0], "run": name, "parameters": round(shared),
            "tokens": row["step"] * per_row * run.experiment.batch_size,
            "flops": row["step"] * row["model_flops_per_step"],
            "text_loss": row["held_out_text_loss"], "image_loss": row["held_out_image_loss"],
        }
        for row in run.metrics()
        if "held_out_image_loss" in row
    ]  # fmt: skip


rows = [row for name, run in runs.items() for row in rows_of(name, run)]

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for axis, loss in zip(axes, ("text_loss", "image_loss"), strict=True):
    for name in runs:
        mine = [row for row in rows if row["run"] == name]
        style = "-" if name.startswith("dense") else "--"
        axis.plot([row["flops"] for row in mine], [row[loss] for row in mine], style, marker=".", label=name)
    axis.set(xscale="log", yscale="log", xlabel="training FLOPs", title=f"held-out {loss.replace('_', ' ')}")
axes[1].legend(fontsize=7)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## A scaling law
#
# The table has a row for each measurement. `transfusion.scaling` fits a law L(N, D) = E + A / N^a + B / D^b to each system
# and medium, with intervals. With more runs it also leaves the largest one out and predicts it.

# %%
table = work / "losses.csv"
with open(table, "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
command = ["transfusion.scaling", str(table), "--workdir", str(work / "runs" / "scaling"), "--held_out=none"]
fitted = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
print(fitted.stdout, fitted.stderr[-2000:])
fitted.check_returncode()
sorted(json.loads((work / "runs" / "scaling" / "scaling.json").read_text()))

# %% [markdown]
# ## What next
#
# - `runs/scaling/scaling.html` has the curves and the exponents.
# - A file of claims compares systems over seeds, at equal FLOPs, with a verdict: `docs/claims.md`.
# - `transfusion sweep` trains many configs in parallel and makes a page of them.
