"""Feed-forward layers beside those of the streams' own experts: shared ones, and experts that a router chooses.

A token's feed-forward layer is a sum (survey arXiv 2409.14993, section IV-B2, figure 10b): that of its stream's expert
(`transfusion.model.block`), and those of `TransformerConfig.feed_forwards`, each of a kind of `KINDS`. No token is
dropped: every token gets all of its experts, however many others choose the same ones.

A parameter with the leading axis `layers` is stacked over the depth. E is the number of experts, k how many of them a
token takes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.errors import UsageError, check
from transfusion.model.block import ACTIVATIONS, FFN_KINDS, Block
from transfusion.model.parameters import array, fan_in, param, zeros
from transfusion.sharding import RULES, fitting, per_device, platform

TILE = 64  # rows of one expert that `_tiles` multiplies at a time
LEAST = 2  # rows of a product: XLA:CPU sums that of a single row in another order


@dataclasses.dataclass(frozen=True)
class FeedForwardConfig:
    """A feed-forward layer, or a set of experts, whose output is added for all tokens of some streams.

    Attributes:
      kind: 'shared': all tokens pass through the same layer; 'routed': a router chooses experts for each token.
      streams: the streams whose tokens pass; () means all. Tokens of several streams compete for the same experts.
      ffn: hidden width of the layer, or of each expert; 0 means the trunk's F.
      experts, top: E and k of 'routed'.
      score: how the router's logits become scores, a key of `SCORES`: 'softmax' over all experts, or 'sigmoid' of each.
      renormalise: whether the scores of the chosen experts are divided by their sum.
      factor: what the sum over the chosen experts is multiplied by.
      balance: how far one step moves the biases that even out the loads (DeepSeek-V3, arXiv 2412.19437, section
        2.1.2, moves them by 0.001), see `balanced`; 0: the router has no such biases.
    """

    kind: str = "routed"
    streams: tuple[str, ...] = ()
    ffn: int = 0
    experts: int = 8
    top: int = 2
    score: str = "softmax"
    renormalise: bool = True
    factor: float = 1.0
    balance: float = 0.001

    def __post_init__(self):
        check("model.feed_forwards: kind", self.kind, KINDS)
        check("model.feed_forwards: score", self.score, SCORES)
        if self.top > self.experts:
            raise UsageError(f"model.feed_forwards: top {self.top} is more than the {self.experts} experts")

    @property
    def choices(self) -> int:
        """How many experts are chosen for a token: k, or 0 where nothing is chosen."""
        return self.top if KINDS[self.kind] is Routed else 0


SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


class Shared(Block):
    """A feed-forward layer for all tokens, in all layers."""

    def __init__(self, trunk: Any, config: FeedForwardConfig, rngs: nnx.Rngs):
        """`trunk` is a `transfusion.model.config.TransformerConfig`."""
        super().__init__(dataclasses.replace(trunk, ffn=config.ffn or trunk.hidden), rngs, ("ffn",))
        self.config = config

    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, None]:
        """The layer's output for tokens x [B, N, D], of which bool [B, N] are `real`. No experts are chosen."""
        return self.feed_forward(x), None

    @staticmethod
    def weights_per_token(config: FeedForwardConfig, sizes: dict[str, int]) -> float:
        """The number of weights that a token is multiplied with, from those of each array."""
        return sum(sizes.values())


class Routed(nnx.Module):
    """Experts in all layers, of which a router chooses `top` for each token by the token alone."""

    def __init__(self, trunk: Any, config: FeedForwardConfig, rngs: nnx.Rngs):
        """`trunk` is a `transfusion.model.config.TransformerConfig`."""
        self.config, self.activation = config, FFN_KINDS[trunk.ffn_kind]
        n, d, e, f = trunk.layers, trunk.width, config.experts, config.ffn or trunk.hidden
        gated, biased = trunk.ffn_kind == "swiglu", "ffn" in trunk.biases

        def weight(there: bool, shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> nnx.Param | None:
            return param(rngs, (n, *shape), ("layers", *axes), init) if there else None

        # Every device has the whole router, so that it chooses alike on any number of devices.
        self.router = weight(True, (d, e), (None, None), fan_in(d))
        self.router_bias = weight(config.balance > 0, (e,), (None,), zeros)
        self.gate = weight(gated, (e, d, f), AXES["gate"], fan_in(d))
        self.gate_bias = weight(gated and biased, (e, f), AXES["gate_bias"], zeros)
        self.up = weight(True, (e, d, f), AXES["up"], fan_in(d))
        self.up_bias = weight(biased, (e, f), AXES["up_bias"], zeros)
        self.down = weight(True, (e, f, d), AXES["down"], fan_in(f * 2 * n))
        self.down_bias = weight(biased, (e, d), AXES["down_bias"], zeros)

    # The methods below run on the weights of a single layer, which have no leading axis.

    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The experts' weighted sum for tokens x [B, N, D], and the experts that each took, int32 [B, N, k].

        Tokens that are not `real`, bool [B, N], are padding: they take no expert, E stands for it, and the sum is 0.
        """
        chosen, weights = self.choose(x)
        chosen = jnp.where(real[..., None], chosen, self.config.experts)
        return jnp.where(real[..., None], combined(self.outputs(x, chosen), weights, self.config), 0), chosen

    def choose(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The experts of each token, int32 [B, N, k], the best first, and their scores, float32 [B, N, k].

        The biases of `balanced` change which experts are chosen, and not their scores (arXiv 2408.15664, equation 3).
        """
        tokens = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        rows = jnp.concatenate([tokens] * LEAST) if len(tokens) < LEAST else tokens
        logits = jnp.matmul(rows, self.router[...], precision=jax.lax.Precision.HIGHEST)[: len(tokens)]
        scores = SCORES[self.config.score](logits).reshape(*x.shape[:-1], -1)
        bias = 0.0 if self.router_bias is None else jax.lax.broadcast_to_rank(self.router_bias[...], scores.ndim)
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores + bias), self.config.top)
        return chosen, jnp.take_along_axis(scores, chosen, -1)

    def outputs(self, x: jax.Array, chosen: jax.Array) -> jax.Array:
        """The outputs of the chosen experts [B, N, k, D] for tokens x [B, N, D].

        Each device computes its own experts' outputs, for its own tokens and for those of the devices beside it along
        the axis 'expert' of the mesh; the sums that put them together add zeros only.
        """
        weights = {name: array(getattr(self, name)) for name in AXES if getattr(self, name) is not None}
        split = {name: fitting(w.shape, *AXES[name]) for name, w in weights.items()}
        tokens = fitting(x.shape, "batch", "tokens", None)
        into, out = (tokens, tokens, split), (*tokens, None)
        whole = (x.shape[0], *weights["up"].shape)

        def local(x: jax.Array, chosen: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
            return _on_one_device(x, chosen, weights, whole, ACTIVATIONS[self.activation])

        return per_device(local, into, jax.sharding.PartitionSpec(*out))(x, chosen, weights)

    @staticmethod
    def weights_per_token(config: FeedForwardConfig, sizes: dict[str, int]) -> float:
        """The number of weights that a token is multiplied with, from those of each array: `top` of the experts'."""
        rest = {name: size for name, size in sizes.items() if name not in AXES}
        share = config.top / config.experts
        return share * (sum(sizes.values()) - sum(rest.values())) + sizes["router"]


# Kinds of `FeedForwardConfig`.
KINDS: dict[str, Any] = {"shared": Shared, "routed": Routed}
# Logical axes of the experts' weights in one layer.
AXES: dict[str, tuple[str | None, ...]] = {
    "gate": ("experts", "embed", "mlp"),
    "gate_bias": ("experts", "mlp"),
    "up": ("experts", "embed", "mlp"),
    "up_bias": ("experts", "mlp"),
    "down": ("experts", "mlp", "embed"),
    "down_bias": ("experts", None),
}


def combined(outputs: jax.Array, scores: jax.Array, config: FeedForwardConfig) -> jax.Array:
    """The sum [B, N, D] of `outputs` [B, N, k, D], weighted by `scores` [B, N, k].

    It is the first output plus weighted differences to it: where all outputs are equal, the sum is the same bits.
    """
    total = jnp.sum(scores, -1, keepdims=True)
    # A token's sum is the same bits in any batch only if it is never one program with what made the outputs.
    outputs = jax.lax.optimization_barrier(outputs)
    y, shares = outputs.astype(jnp.float32), scores / jnp.maximum(total, 1e-20)
    result = y[..., 0, :]
    for i in range(1, y.shape[-2]):
        result = result + shares[..., i, None] * (y[..., i, :] - y[..., 0, :])
    result = result if config.renormalise else result * total
    return (config.factor * result).astype(outputs.dtype)


def load(chosen: jax.Array, experts: int) -> jax.Array:
    """How many tokens each expert has, float32 [E]; `chosen` is int32 [B, N, k], and E or more stands for no expert."""
    return jnp.sum(jax.nn.one_hot(chosen, experts, dtype=jnp.float32), (0, 1, 2))


def balanced(bias: jax.Array, loads: jax.Array, config: FeedForwardConfig) -> jax.Array:
    """The biases [layers, E] after a step with these loads [layers, E] (arXiv 2408.15664, algorithm 1).

    Those of experts with more tokens than the mean fall by `config.balance`, and those of the others rise.
    """
    return bias + config.balance * jnp.sign(jnp.mean(loads, -1, keepdims=True) - loads)


# --- products ---------------------------------------------------------------------------------------------------------


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
    """Sorts the tokens by expert, for `jax.lax.ragged_dot`."""
    order = jnp.argsort(ids, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(ids)), unique_indices=True)
    sizes = _sizes(ids, experts)
    return Rows(
        place, len(ids), jnp.minimum(ids[order], experts - 1), lambda x, w: jax.lax.ragged_dot(x, w, sizes)
    )  # fmt: skip


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
