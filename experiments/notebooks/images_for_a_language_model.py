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
# # Images for a language model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/images_for_a_language_model.ipynb)
#
# A released text model learns to draw, while its own weights stay as they are, bit for bit, as in LMFusion (arXiv
# 2412.15188): the tokens of images get weights of their own in every layer, which begin as a copy of the text's, and see
# the text through the attention that both share.
#
# Without a network the notebook makes a tiny Qwen with random weights. Set `RELEASED` to a folder or to
# `hf://Qwen/Qwen2.5-0.5B` for a real one.

# %%
# Installs the library where it is missing, as in Colab. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("transfusion") is None:
    library = "transfusion[demo] @ git+https://github.com/transfusion-jax/transfusion"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library], check=True)

# %%
import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

import transfusion
from transfusion import layouts, pictures
from transfusion.data import builders
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.initial import InitConfig
from transfusion.interop.importing import import_checkpoint
from transfusion.optim import LearningRateGroup
from transfusion.remote.hub import local_copy
from transfusion.workdir.config_file import read_experiment

work = pathlib.Path(os.environ.get("TRANSFUSION_NOTEBOOK_FOLDER", "."))
steps = int(os.environ.get("TRANSFUSION_NOTEBOOK_STEPS", 850))
RELEASED = ""

# %% [markdown]
# ## A Qwen
#
# This is the form in which such models are released: a `config.json`, and arrays in safetensors. The tiny one has no
# tokenizer, so its text is bytes.


# %%
def tiny_qwen(folder: pathlib.Path, width: int = 128, ffn: int = 256, layers: int = 4, vocabulary: int = 320) -> None:
    """Writes a Qwen2 of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": width, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": vocabulary,
        "max_position_embeddings": 512, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
        shapes |= {f"{at}.self_attn.{n}_proj.bias": (width,) for n in "qkv"}
        shapes |= {f"{at}.mlp.{n}_proj.weight": (ffn, width) for n in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (width, ffn)
        shapes |= {f"{at}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
    chance = np.random.default_rng(0)
    scale = {name: 1.0 if "norm" in name else shape[-1] ** -0.5 for name, shape in shapes.items()}
    drawn = {n: scale[n] * (chance.normal(size=s) if "norm" not in n else np.ones(s)) for n, s in shapes.items()}
    save_file({name: array.astype(np.float32) for name, array in drawn.items()}, folder / "model.safetensors")


# %%
text_run = work / "runs" / "qwen"
if not text_run.is_dir():
    if not RELEASED:
        tiny_qwen(work / "tiny_qwen")
    import_checkpoint(local_copy(RELEASED or work / "tiny_qwen"), text_run, text_as_bytes=not RELEASED)
qwen = read_experiment(text_run)
qwen.model

# %% [markdown]
# ## The same model with images
#
# The streams of text stay as they are. Images come as a second stream with weights of their own (`expert`). `init` takes
# what the run of the text has, and copies its blocks for the images; a group with the factor 0 is frozen.

# %%
builders.prepare("digits", str(work / "data"))
digits = transfusion.experiment("digits", steps=steps, **{"data.data_dir": str(work / "data")})
streams = {
    "text": dataclasses.replace(qwen.streams["text"], budget=64),
    "image": dataclasses.replace(digits.streams["image"], expert="image"),
}
own = streams["text"].expert
copies = tuple((f"trunk/{part}/image", f"trunk/{part}/{own}") for part in ("blocks", "final_norm"))
frozen = LearningRateGroup(f"trunk/(blocks|final_norm)/{own}|parts/text", 0.0)
experiment = dataclasses.replace(
    digits,
    model=qwen.model, tokenizer=qwen.tokenizer, streams=streams, layout=layouts.transfusion(),
    init=InitConfig(str(text_run), copies), optim=dataclasses.replace(digits.optim, groups=(frozen,)),
    data=dataclasses.replace(digits.data, caption_first=1.0), eval=dataclasses.replace(digits.eval, every=0),
)  # fmt: skip

# %% [markdown]
# ## Train
#
# Only the images learn. The text of a random Qwen says nothing, but its layers still tell one caption from another, and
# that is enough to draw by.

# %%
run = transfusion.train(experiment, work / "runs" / "qwen_draws")
run.plot("image_loss")

# %%
captions = [f"a handwritten {name}" for name in DIGIT_WORDS]
pictures.grid(run.draw(captions, seed=1), 5, captions)

# %% [markdown]
# ## Nothing of the text has changed
#
# Each array of the text is the same, bit for bit, so the model writes what it wrote before.

# %%
before = transfusion.load_run(text_run).params["trunk"]["blocks"][own]
after = run.params["trunk"]["blocks"][own]
same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), before, after)
assert all(jax.tree.leaves(same))
print(f"{len(jax.tree.leaves(same))} arrays of the text expert are as they were")

# %% [markdown]
# ## What next
#
# - `transfusion export --workdir runs/qwen_draws FOLDER --drop '*image*' --source runs/qwen` writes the text model again in
#   the form in which it came.
# - `configs/lmfusion.py` is this recipe with a language model that we train first; `configs/llava.py` and
#   `configs/resampler.py` teach a frozen language model to read images.
