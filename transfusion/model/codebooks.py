"""What an optimizer does not train of a codebook: moving averages, how often each code is used, and codes without use.

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
    """Sums over a batch; those of its parts add up.

    Attributes:
      counts: [K], uses of each code.
      sums: [K, c], of the vectors that chose it.
      candidates: [rows, n, c], vectors of each image that may become codes.
      scores: [rows, n], how much they should; 0: not at all.
    """

    counts: jax.Array
    sums: jax.Array
    candidates: jax.Array
    scores: jax.Array


def draw_statistics(key: jax.Array, rows: int, ids: int) -> dict[str, jax.Array]:
    """What `statistics` needs of chance for a batch of `rows` images of `ids` codes; parts of a batch take their rows:
    'slot' [rows, rows], the place of each image among all, and 'luck' [rows, ids], exponential."""
    return {"slot": jnp.eye(rows), "luck": jax.random.exponential(key, (rows, ids))}


def statistics(
    quantized: Quantized, config: QuantizerConfig, draws: dict[str, jax.Array], weight: jax.Array
) -> Statistics:
    """The sums of a batch or of a part of it; images of `weight` [B] 0 do not count.

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
    """Uses of each code, float32 [K], over images of `weight` [B] other than 0."""
    ids = quantized.ids.reshape(weight.shape[0], -1)
    each = jnp.broadcast_to((weight > 0).astype(jnp.float32)[:, None], ids.shape)
    return jnp.zeros(vocabulary).at[ids.reshape(-1)].add(each.reshape(-1))


def update(config: QuantizerConfig, old: Params, new: Params, seen: Statistics) -> Params:
    """The parameters of a `VectorQuantizer` after a step.

    Args:
      old, new: before the step, and as the optimizer leaves them; the averages of `old` go on.
      seen: of the whole batch.
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
    """The n-th code that is hardly used becomes the n-th best candidate, with the mean use until it has its own."""
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
