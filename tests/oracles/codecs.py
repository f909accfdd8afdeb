"""Image codecs and vision towers."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from oracles import Oracle, assert_same_checkpoint, run
from transfusion.codecs.kl_autoencoder import Autoencoder, kl_divergence
from transfusion.interop.export import export_checkpoint
from transfusion.interop.files import Checkpoint
from transfusion.interop.importing import import_checkpoint, load_params
from transfusion.interop.known import find_family
from transfusion.workdir.config_file import read_experiment


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def nchw(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def autoencoder(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, workdir = oracle.load()
    pixels, z, noise = (nhwc(oracle.inputs[name]) for name in ("px", "z", "eps"))

    def call(model: Autoencoder, pixels: jax.Array, z: jax.Array) -> tuple[jax.Array, ...]:
        mean, logvar = model.moments(pixels)
        return mean, logvar, model.reconstruct(jnp.concatenate([mean, z]))

    mean, logvar, images = run(imported, params, call, pixels, z)
    # The negative log likelihood under the posterior, per image; the reference asks for that of the noise itself.
    nll = 0.5 * jnp.sum(jnp.log(2 * jnp.pi) + logvar + jnp.square(noise - mean) / jnp.exp(logvar), (1, 2, 3))
    found = read_experiment(workdir).autoencoder
    config = oracle.hf_config or oracle.config
    assert (found.scale, found.shift) == (config["scaling_factor"], config.get("shift_factor") or 0)
    same_under_original_names(oracle, config, params)
    return {
        "mean": nchw(mean),
        "logvar": nchw(logvar),
        "sample": nchw(mean + jnp.exp(0.5 * logvar) * noise),
        "kl": kl_divergence(mean, logvar),
        "nll": nll,
        "mode_decode": nchw(images[: len(mean)]),
        "decode": nchw(images[len(mean) :]),
    }


def same_under_original_names(oracle: Oracle, config: dict, params: Any) -> None:
    """The same file under its makers' names gives the same parameters, and is written again as it was."""
    folder, workdir = oracle.tmp_path / "original", oracle.tmp_path / "from_original"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    weights = original_names(load_file(oracle.weights), len(config["block_out_channels"]))
    save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, folder / "ae.safetensors")
    import_checkpoint(folder, workdir, text_as_bytes=True)
    export_checkpoint(workdir, oracle.tmp_path / "original_again")
    assert_same_checkpoint(folder, oracle.tmp_path / "original_again")
    _, imported = find_family(Checkpoint(folder))
    jax.tree.map(np.testing.assert_array_equal, load_params(workdir, imported), params)


# The names of diffusers -> those of latent diffusion and FLUX; all but the numbers of the decoder's stages.
ORIGINAL = {
    r"\.mid_block\.resnets\.0\.": ".mid.block_1.",
    r"\.mid_block\.resnets\.1\.": ".mid.block_2.",
    r"\.mid_block\.attentions\.0\.group_norm\.": ".mid.attn_1.norm.",
    r"\.mid_block\.attentions\.0\.to_([qkv])\.": r".mid.attn_1.\1.",
    r"\.mid_block\.attentions\.0\.to_out\.0\.": ".mid.attn_1.proj_out.",
    r"\.down_blocks\.(\d+)\.resnets\.": r".down.\1.block.",
    r"\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.": r".down.\1.downsample.conv.",
    r"\.up_blocks\.(\d+)\.resnets\.": r".up.\1.block.",
    r"\.up_blocks\.(\d+)\.upsamplers\.0\.conv\.": r".up.\1.upsample.conv.",
    r"\.conv_shortcut\.": ".nin_shortcut.",
    r"\.conv_norm_out\.": ".norm_out.",
}


def original_names(weights: dict[str, np.ndarray], stages: int) -> dict[str, np.ndarray]:
    """An autoencoder's weights under the names and in the shapes of their makers."""
    renamed = {}
    for key, value in weights.items():
        for theirs, name in ORIGINAL.items():
            key = re.sub(theirs, name, key)
        # There a module list is filled from its front, here from its end.
        key = re.sub(r"\.up\.(\d+)\.", lambda match: f".up.{stages - 1 - int(match[1])}.", key)
        matrix = ".attn_1." in key and ".norm." not in key and value.ndim == 2
        renamed[key] = value[:, :, None, None] if matrix else value
    return renamed


def siglip(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()
    features = run(imported, params, lambda model, x: model(x), nhwc(oracle.inputs["px"]))
    ours = {"last": features.last, "pool": features.pooled, "penultimate": features.hidden[-2]}
    if "px2" in oracle.inputs:  # of another size than the table of positions
        ours["last_interp"] = run(imported, params, lambda model, x: model(x), nhwc(oracle.inputs["px2"])).last
    return ours


CHECKS = {
    r"diffusers \S+ AutoencoderKL\b": autoencoder,
    r"transformers \S+ SiglipVisionModel\b": siglip,
}
