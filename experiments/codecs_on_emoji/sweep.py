"""Trains codecs of 24x24 emoji with one encoder and decoder: three kinds of codes, and Gaussian latents of as many
bits.
"""

import pathlib

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# The weight of the divergence decides how many bits Gaussian latents take.
WEIGHTS = (1e-3, 3e-2, 1e-1)


def get_sweep():
    """(name, config file, fields that differ)."""
    config = str(CONFIGS / "vq_emoji.py")
    gaussian = {"autoencoder.form": "kl"}
    latents = [(f"kl_{weight:g}", config, gaussian | {"autoencoder.kl_weight": weight}) for weight in WEIGHTS]
    return [("vq", config, {}), *latents, *((form, f"{config}:{form}", {}) for form in ("fsq", "multiscale"))]
