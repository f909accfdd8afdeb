"""Image codecs and vision towers."""

import jax
import jax.numpy as jnp
import numpy as np

from oracles import Oracle, run
from transfusion.codecs.kl_autoencoder import Autoencoder, kl_divergence
from transfusion.programs import read_experiment


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
    return {
        "mean": nchw(mean),
        "logvar": nchw(logvar),
        "sample": nchw(mean + jnp.exp(0.5 * logvar) * noise),
        "kl": kl_divergence(mean, logvar),
        "nll": nll,
        "mode_decode": nchw(images[: len(mean)]),
        "decode": nchw(images[len(mean) :]),
    }


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
