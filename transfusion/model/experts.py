"""Feed-forward layers beside those of the streams' own experts: shared ones, and experts that a router chooses.

A token's feed-forward layer is a sum (survey arXiv 2409.14993, section IV-B2, figure 10b): that of its stream's expert
(`transfusion.model.block`), and those of `TransformerConfig.feed_forwards`, each of a kind of `KINDS`. No token is
dropped: every token gets all of its experts, however many others choose the same ones.

A parameter with the leading axis `layers` is stacked over the depth. E is the number of experts, k how many of them a
token takes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.errors import UsageError, check
from transfusion.model.block import ACTIVATIONS, FFN_KINDS, GROUPS, Block
from transfusion.model.expert_products import AXES, outputs
from transfusion.model.parameters import array, fan_in, param, zeros

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
        matrices = {name: array(getattr(self, name)) for name in AXES if getattr(self, name) is not None}
        y = outputs(x, chosen, matrices, ACTIVATIONS[self.activation])
        return jnp.where(real[..., None], combined(y, weights, self.config), 0), chosen

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

    @staticmethod
    def weights_per_token(config: FeedForwardConfig, sizes: dict[str, int]) -> float:
        """The number of weights that a token is multiplied with, from those of each array: `top` of the experts'."""
        rest = {name: size for name, size in sizes.items() if name not in AXES}
        share = config.top / config.experts
        return share * (sum(sizes.values()) - sum(rest.values())) + sizes["router"]


# Kinds of `FeedForwardConfig`.
KINDS: dict[str, Any] = {"shared": Shared, "routed": Routed}


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


def check_feed_forwards(trunk: Any, experts: Mapping[str, str], apart: bool) -> None:
    """Refuses streams without a feed-forward layer, and layers for streams that a trunk does not have.

    Args:
      trunk: a `transfusion.model.config.TransformerConfig`.
      experts: the expert of each stream.
      apart: whether the experts' blocks have weights of several kinds.

    Raises:
      UsageError: naming the field.
    """
    if apart and {*trunk.untied} != {*GROUPS}:
        raise UsageError("model.ffn_absent: name all experts, or let them own all of their weights (model.untied)")
    for name, layer in trunk.feed_forwards.items():
        for stream in layer.streams:
            check(f"model.feed_forwards.{name}.streams", stream, experts)
    for stream, expert in experts.items():
        passes = any(stream in (layer.streams or experts) for layer in trunk.feed_forwards.values())
        if expert in trunk.ffn_absent and not passes:
            raise UsageError(f"model.ffn_absent: the stream {stream!r} passes no feed-forward layer")
