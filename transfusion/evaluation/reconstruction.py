"""Measures a trained codec: how well it reconstructs held-out images, and how many bits its latents take."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.codecs.losses import FIDELITY
from transfusion.codecs.pixels import to_uint8
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.evaluation import pictures
from transfusion.evaluation.intervals import bootstrap, score
from transfusion.model.parameters import Params
from transfusion.running.metrics import codebook_scores
from transfusion.tasks import AutoencoderTask

CODEC_MEANINGS = {
    "psnr": "peak signal-to-noise ratio in dB of held-out images, encoded and decoded (Gaussian latents: their means); "
    "95 % bootstrap over images",
    "ssim": "structural similarity of the same images, windows of 11 pixels; 95 % bootstrap over images",
    "bits_per_image": "bits that the latents of an image take. Codes: their number times log2 of the vocabulary. "
    "Gaussian latents: the divergence of their distribution from N(0, 1), which is what a drawn latent tells",
    "psnr_drawn": "psnr of Gaussian latents that are drawn from their distribution, as the bits assume",
    "ssim_drawn": "ssim of drawn latents",
    "codebook_use": "share of the codes that occur in the held-out images; its interval is the number itself",
    "codebook_perplexity": "exp of the entropy of the codes' shares in the held-out images; its interval is the number",
}
GRID_IMAGES = 30  # images of the saved grid, each above its reconstruction


def measure(
    task: AutoencoderTask, params: Params, experiment: Experiment, seed: int, path: pathlib.Path
) -> dict[str, Any]:
    """The scores of `CODEC_MEANINGS` over all held-out images. A grid of images and reconstructions is written to
    `path`.

    Raises:
      UsageError: if the config names no held-out images.
    """
    found: dict[str, list[np.ndarray]] = {}
    counts, shown = 0.0, []
    for images, values, ids in _reconstructed(task, params, experiment, seed):
        for name, value in values.items():
            found.setdefault(name, []).append(value)
        shown += list(images)[: GRID_IMAGES - len(shown)]
        if task.config.form != "kl":
            counts += np.bincount(ids.reshape(-1), minlength=task.static.quantizer.vocabulary)
    if not found:
        raise UsageError("eval.sources: a codec is evaluated on held-out images, and the config names none")
    result: dict[str, Any] = {name: bootstrap(np.concatenate(parts), seed=seed) for name, parts in found.items()}
    images = result["psnr"]["count"]
    if task.config.form != "kl":
        bits = math.prod(task.static.code_shape(*task.sides)) * math.log2(len(counts))
        result["bits_per_image"] = score(bits, bits, bits, images)
        result |= {f"codebook_{n}": score(value, value, value, images) for n, value in codebook_scores(counts).items()}
    _save(shown, path)
    return dict.fromkeys(CODEC_MEANINGS) | result


def _reconstructed(
    task: AutoencoderTask, params: Params, experiment: Experiment, seed: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
    """Yields for each batch images beside their reconstructions [b, 2, ..., C], values [b] by name, and codes."""
    gaussian = task.config.form == "kl"

    @jax.jit
    def run(params, batch, key):
        model, real = task.template.bind(params), batch["images"]
        code = model.encode(real)
        made = jnp.clip(model.decode(code), -1, 1)

        def compare(images: jax.Array, suffix: str) -> dict[str, jax.Array]:
            flat = [jnp.clip(x, -1, 1).reshape(-1, *x.shape[-3:]) for x in (images, real)]
            return {n + suffix: f(*flat).reshape(real.shape[0], -1).mean(1) for n, f in FIDELITY.items()}

        values = compare(made, "")
        if gaussian:
            coded = model.code(real, task.draw(batch, key))
            values |= compare(model.reconstruct(coded.z), "_drawn")
            values["bits_per_image"] = coded.metrics["kl_nats"] / math.log(2)
        return jnp.stack([real, made], axis=1), values, code

    for i, batch in enumerate(task.held_out(experiment)):
        images, values, code = jax.device_get(run(params, batch, jax.random.fold_in(jax.random.key(seed), i)))
        used = batch["weight"] > 0
        yield images[used], {name: value[used] for name, value in values.items()}, code[used]


def _save(pairs: list[np.ndarray], path: pathlib.Path) -> None:
    """Writes a grid with rows of images above rows of their reconstructions. Clips show their first frames."""
    firsts = [pair if pair.ndim == 4 else pair[:, 0] for pair in pairs]
    columns = min(10, len(firsts))
    rows = [firsts[at : at + columns] for at in range(0, len(firsts), columns)]
    shown = [to_uint8(pair[which]) for row in rows if len(row) == columns for which in (0, 1) for pair in row]
    pictures.grid(shown, columns, path=path)
