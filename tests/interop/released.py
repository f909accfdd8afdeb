"""Tiny released folders of random weights, written by the safetensors package."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from transfusion.interop.known import FAMILIES
from transfusion.interop.leaves import their_shapes

SIGLIP = {
    "architectures": ["SiglipVisionModel"],
    "model_type": "siglip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
    "hidden_act": "gelu_pytorch_tanh",
}
AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "latent_channels": 3,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}


def weights(family: str, config: dict, prefix: str = "", dtype: object = np.float32, seed: int = 0) -> dict:
    """Random arrays under the released names."""
    imported = FAMILIES[family].build(config, [f"{prefix}x"])
    rng = np.random.default_rng(seed)
    shapes = their_shapes(*imported.whole)
    return {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items()}


def write(folder: pathlib.Path, config: dict, *shards: dict) -> pathlib.Path:
    """A folder with these weights in one file, or in several with an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    return folder


def halves(arrays: dict) -> tuple[dict, dict]:
    """The arrays as two shards, every other key in each."""
    items = list(arrays.items())
    return dict(items[::2]), dict(items[1::2])
