"""Products of tokens with the matrices of the experts that were chosen for them, on one device or on many.

The tokens are sorted by expert, multiplied, and put back; no token is dropped. B rows, N tokens, D width, E experts,
k experts of a token, M = B N k.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transfusion.sharding import RULES, fitting, per_device, platform

TILE = 64  # rows of one expert that `_tiles` multiplies at a time
# Logical axes of the experts' weights in one layer.
AXES: dict[str, tuple[str | None, ...]] = {
    "gate": ("experts", "embed", "mlp"),
    "gate_bias": ("experts", "mlp"),
    "up": ("experts", "embed", "mlp"),
    "up_bias": ("experts", "mlp"),
    "down": ("experts", "mlp", "embed"),
    "down_bias": ("experts", None),
}


def outputs(x: jax.Array, chosen: jax.Array, weights: dict[str, jax.Array], act: Callable) -> jax.Array:
    """The outputs [B, N, k, D] of the chosen experts int32 [B, N, k], for tokens x [B, N, D].

    Each device computes its own experts' outputs, for its own tokens and for those of the devices beside it along the
    axis 'expert' of the mesh; the sums that put them together add zeros only. `weights` are those of one layer.
    """
    split = {name: fitting(w.shape, *AXES[name]) for name, w in weights.items()}
    tokens = fitting(x.shape, "batch", "tokens", None)
    whole = (x.shape[0], *weights["up"].shape)

    def local(x: jax.Array, chosen: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        return _on_one_device(x, chosen, weights, whole, act)

    return per_device(local, (tokens, tokens, split), jax.sharding.PartitionSpec(*tokens, None))(x, chosen, weights)


def _on_one_device(
    x: jax.Array, chosen: jax.Array, weights: dict[str, jax.Array], whole: tuple[int, ...], act: Callable
) -> jax.Array:
    """The outputs [B, N, k, D] of the chosen experts, on one device of a mesh, or without one.

    Args:
      x, chosen: this device's tokens [B, N, D], and their experts int32 [B, N, k].
      weights: this device's part of the weights of one layer.
      whole: rows of the batch, E, D and F over all devices, which tell what is split.
      act: the activation.
    """
    rows, experts, width, hidden = whole
    (by_expert,), embed, (by_width,) = RULES["experts"], RULES["embed"], RULES["mlp"]
    mine = weights["up"].shape[0]
    gathers = mine < experts and x.shape[0] < rows
    if gathers:
        x, chosen = (jax.lax.all_gather(t, by_expert, axis=0, tiled=True) for t in (x, chosen))
    if weights["up"].shape[1] < width:
        at = {name: axes.index("embed") for name, axes in AXES.items() if "embed" in axes and name in weights}
        weights = weights | {n: jax.lax.all_gather(weights[n], embed, axis=i, tiled=True) for n, i in at.items()}
    first = jax.lax.axis_index(by_expert) * mine if mine < experts else 0
    own = (chosen >= first) & (chosen < first + mine)
    ids = jnp.where(own, chosen - first, mine)
    y = feed_forwards(x, ids, weights, act)
    if weights["up"].shape[2] < hidden:
        y = jax.lax.psum(y, by_width)
    if "down_bias" in weights:
        y = y + weights["down_bias"].astype(y.dtype)[jnp.minimum(ids, mine - 1)]
    if mine == experts:
        return y
    y = jnp.where(own[..., None], y, 0)
    return (
        jax.lax.psum_scatter(y, by_expert, scatter_dimension=0, tiled=True) if gathers else jax.lax.psum(y, by_expert)
    )


def feed_forwards(x: jax.Array, ids: jax.Array, weights: dict[str, jax.Array], act: Callable) -> jax.Array:
    """The outputs [B, N, k, D] of experts `ids` int32 [B, N, k] for tokens x [B, N, D], without the last bias.

    An id of E or more stands for no expert; its output means nothing.
    """
    up = weights["up"].astype(x.dtype)
    rows = PRODUCTS[_backend()](ids.reshape(-1), up.shape[0])
    each = jnp.broadcast_to(x[..., None, :], (*ids.shape, x.shape[-1])).reshape(-1, x.shape[-1])
    given = jnp.zeros((rows.count, x.shape[-1]), x.dtype).at[rows.place].set(each, unique_indices=True)

    def times(y: jax.Array, name: str) -> jax.Array:
        y = rows.times(y, weights[name].astype(x.dtype))
        return y + weights[f"{name}_bias"].astype(x.dtype)[rows.expert] if f"{name}_bias" in weights else y

    hidden = act(times(given, "up")) if "gate" not in weights else act(times(given, "gate")) * times(given, "up")
    y = rows.times(hidden, weights["down"].astype(x.dtype))
    return y.at[rows.place].get(unique_indices=True).reshape(*ids.shape, -1)


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the tokens lie for the products with their experts' matrices.

    Attributes:
      place: where each token lies, int32 [M].
      count: the number of places.
      expert: the expert of each place, int32 [count].
      times: a function of rows [count, in] and matrices [E, in, out], which multiplies each row with its expert's.
    """

    place: jax.Array
    count: int
    expert: jax.Array
    times: Callable[[jax.Array, jax.Array], jax.Array]


def _ragged(ids: jax.Array, experts: int) -> Rows:
    """Sorts the tokens by expert, for `jax.lax.ragged_dot`. Tokens without an expert are last, and become 0."""
    order = jnp.argsort(ids, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(ids)), unique_indices=True)
    sizes = _sizes(ids, experts)
    used = (jnp.arange(len(ids)) < jnp.sum(sizes))[:, None]

    def times(x: jax.Array, w: jax.Array) -> jax.Array:
        # Behind the last group a device may leave what was in its memory, in the gradient of x, too.
        return jnp.where(used, jax.lax.ragged_dot(jnp.where(used, x, 0), w, sizes), 0)

    return Rows(place, len(ids), jnp.minimum(ids[order], experts - 1), times)


def _tiles(ids: jax.Array, experts: int) -> Rows:
    """Sorts the tokens by expert, each expert's from a new tile on; a loop multiplies one tile after the other.

    XLA has no `ragged_dot` for CPUs: it multiplies all rows with all experts' matrices. Here a product is that of a
    dense layer, so that a token's is the same bits.
    """
    tile = TILE  # also for few rows: the bits of a product may change with their number
    count = len(ids) // tile + min(len(ids), experts + 1)
    sizes = _sizes(ids, experts + 1)  # the last group is the tokens without an expert
    starts = jnp.cumsum(-(-sizes // tile)) - -(-sizes // tile)
    order = jnp.argsort(ids, stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(ids)), unique_indices=True)
    group = jnp.minimum(ids, experts)
    place = starts[group] * tile + rank - (jnp.cumsum(sizes) - sizes)[group]
    expert = jnp.minimum(jnp.searchsorted(starts, jnp.arange(count), side="right") - 1, experts - 1)

    def times(x: jax.Array, w: jax.Array) -> jax.Array:
        products = jax.lax.map(lambda one: one[0] @ w[one[1]], (x.reshape(count, tile, -1), expert))
        return products.reshape(count * tile, -1)

    return Rows(place, count * tile, jnp.repeat(expert, tile), times)


def _every(ids: jax.Array, experts: int) -> Rows:
    """The slow plain reference: every token is multiplied with all matrices, and one product is taken."""
    expert = jnp.minimum(ids, experts - 1)

    def times(x: jax.Array, w: jax.Array) -> jax.Array:
        products = jnp.stack([x @ matrix for matrix in w])
        return jnp.take_along_axis(products, expert[None, :, None], 0)[0]

    return Rows(jnp.arange(len(ids)), len(ids), expert, times)


def _sizes(ids: jax.Array, groups: int) -> jax.Array:
    """How many ids each group has, int32 [groups]."""
    return jnp.sum(ids[:, None] == jnp.arange(groups)[None], 0, dtype=jnp.int32)


# Name -> how the tokens lie. All give the same outputs.
PRODUCTS: dict[str, Callable[[jax.Array, int], Rows]] = {"ragged": _ragged, "tiles": _tiles, "every": _every}
_OF_PLATFORM = {"cpu": "tiles"}


def _backend() -> str:
    """The row of `PRODUCTS` for this platform."""
    return _OF_PLATFORM.get(platform(), "ragged")
