"""Codebooks are updated here where no optimizer does it: moving averages, counts of use, and unused codes revived.

The `statistics` of every part of a batch are summed over the batch, and one `update` follows each training step. They
are sums, so that microbatches and devices give what the whole batch gives.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transfusion.model.parameters import Params
from transfusion.model.quantizers import Quantized, QuantizerConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over a batch; the sums of its parts add up to those of the whole.

    Attributes:
      counts: [K], uses of each code.
      sums: [K, c], of the vectors that chose it.
      candidates: [rows, n, c], vectors of each image that may become codes.
      scores: [rows, n], the priority of each candidate; one with 0 is never taken.
    """

    counts: jax.Array
    sums: jax.Array
    candidates: jax.Array
    scores: jax.Array


def draw_statistics(key: jax.Array, rows: int, ids: int) -> dict[str, jax.Array]:
    """Draws the random numbers of `statistics` for a batch of `rows` images with `ids` codes each.
    They are 'slot' [rows, rows], the place of each image among all, and 'luck' [rows, ids], exponential. A part of the
    batch takes its own rows of them."""
    return {"slot": jnp.eye(rows), "luck": jax.random.exponential(key, (rows, ids))}


def statistics(
    quantized: Quantized, config: QuantizerConfig, draws: dict[str, jax.Array], weight: jax.Array
) -> Statistics:
    """Sums up a batch or a part of it; images whose `weight` [B] is 0 do not count.

    Candidates are drawn with a probability in proportion to their squared distance to the nearest code, as k-means++
    draws its centres: by the largest error / exponential draw.
    """
    used = (weight > 0).astype(jnp.float32)
    B, L, c = quantized.vectors.shape
    ids, each = quantized.ids.reshape(-1), jnp.broadcast_to(used[:, None], (B, L)).reshape(-1)
    counts = jnp.zeros(config.codes).at[ids].add(each)
    sums = jnp.zeros((config.codes, c)).at[ids].add(quantized.vectors.reshape(-1, c) * each[:, None])
    scores, at = jax.lax.top_k(
        quantized.error * used[:, None] / jnp.maximum(draws["luck"], 1e-9), min(config.candidates, L)
    )
    candidates = jnp.take_along_axis(quantized.vectors, at[..., None], axis=1)
    return Statistics(
        counts, sums, jnp.einsum("br,bnc->rnc", draws["slot"], candidates), draws["slot"].T @ scores
    )  # fmt: skip


def histogram(quantized: Quantized, vocabulary: int, weight: jax.Array) -> jax.Array:
    """Counts how often each code is used, float32 [K]; images whose `weight` [B] is 0 do not count."""
    ids = quantized.ids.reshape(weight.shape[0], -1)
    each = jnp.broadcast_to((weight > 0).astype(jnp.float32)[:, None], ids.shape)
    return jnp.zeros(vocabulary).at[ids.reshape(-1)].add(each.reshape(-1))


def update(config: QuantizerConfig, old: Params, new: Params, seen: Statistics) -> Params:
    """Returns the parameters of a `VectorQuantizer` after a training step.

    Args:
      old, new: the parameters before the step, and as the optimizer leaves them. The averages continue those of `old`.
      seen: the statistics of the whole batch.
    """
    if "counts" not in old:
        return new
    d = config.decay
    result = dict(new) | {"counts": d * old["counts"] + (1 - d) * seen.counts}
    if "sums" in old:
        result["sums"] = d * old["sums"] + (1 - d) * seen.sums
        # Both averages start from 0, so that their quotient has no bias; a code without use stays where it is.
        known = result["counts"][:, None] > 1e-9
        result["codebook"] = jnp.where(
            known, result["sums"] / jnp.maximum(result["counts"], 1e-9)[:, None], old["codebook"]
        )
    return _revived(config, result, seen) if config.revive else result


def _revived(config: QuantizerConfig, params: Params, seen: Statistics) -> Params:
    """Replaces the n-th code that is hardly used by the n-th best candidate, which starts with the mean use."""
    counts = params["counts"]
    mean = jnp.mean(counts)
    scores, order = jax.lax.top_k(seen.scores.reshape(-1), seen.scores.size)
    candidates = seen.candidates.reshape(-1, seen.candidates.shape[-1])[order]
    dead = counts < config.revive * mean
    place = jnp.clip(jnp.cumsum(dead) - 1, 0, scores.size - 1)
    taken = dead & (jnp.cumsum(dead) <= scores.size) & (scores[place] > 0)
    fresh = candidates[place]
    result = params | {
        "codebook": jnp.where(taken[:, None], fresh, params["codebook"]),
        "counts": jnp.where(taken, mean, counts),
    }
    if "sums" in params:
        result["sums"] = jnp.where(taken[:, None], mean * fresh, params["sums"])
    return result
