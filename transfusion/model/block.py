"""One layer's weights for one expert, and the two halves of a layer around attention.

Shape letters: see `transfusion.model.transformer`. A parameter with the leading axis `layers` is stacked over depth.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.model import rope
from transfusion.model.parameters import constant, fan_in, ones, param, zeros
from transfusion.sharding import constrain, flat

# What an expert may own (Mixture-of-Transformers unties all of it); what it does not own is the first expert's.
GROUPS = ("qkv", "o", "qk_norm", "ffn", "norms", "final_norm")
MODULATIONS = 6  # shift, scale, gate of attention, then of the feed-forward layer (DiT, arXiv 2212.09748, section 3.2)
ACTIVATIONS = {
    "swiglu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """RMSNorm (arXiv 1910.07467) over the last axis, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    return (y * broadcast_to_rank(scale, y.ndim)).astype(x.dtype)


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1 along the last axis, in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(y), -1, keepdims=True), 1e-24))).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """LayerNorm (arXiv 1607.06450) over the last axis, in float32; without weights where they are None."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    y = y if scale is None else y * broadcast_to_rank(scale, y.ndim)
    return (y if bias is None else y + broadcast_to_rank(bias, y.ndim)).astype(x.dtype)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [B, N, in] times kernel [in, out...] (plus bias [out...]) -> [B, N, out...].

    Tokens are flattened to one axis: XLA:CPU leaves its fast matrix product when a weight gradient contracts two axes.
    """
    out = (flat(x) if x.ndim == 3 else x.reshape(-1, x.shape[-1])) @ kernel.reshape(kernel.shape[0], -1).astype(x.dtype)
    out = out.reshape(*x.shape[:-1], *kernel.shape[1:])
    return out if bias is None else out + broadcast_to_rank(bias.astype(x.dtype), out.ndim)


def per_token(of_items: jax.Array, item: jax.Array, aligned: bool) -> jax.Array:
    """Spreads [B, M, C] over the tokens [B, N] of its items; `aligned`: item m owns the m-th N / M slots."""
    if aligned:
        return jnp.repeat(of_items, item.shape[1] // of_items.shape[1], axis=1)
    return jnp.take_along_axis(of_items, item[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Norm:
    """Norms of one kind."""

    kind: str
    epsilon: float

    def declare(
        self, rngs: nnx.Rngs, lead: tuple[int, ...], width: int, each: tuple[tuple[int, str], ...] = ()
    ) -> dict[str, nnx.Param]:
        """The weights of a norm stacked over `lead`, and over the axes (size, logical name) of `each`: {'': scale,
        '_bias': bias} or less."""
        axes = ("layers",) * len(lead) + tuple(axis for _, axis in each) + (None,)
        shape = (*lead, *(size for size, _ in each), width)
        weights = {} if self.kind == "plain" else {"": param(rngs, shape, axes, ones)}
        return weights | ({"_bias": param(rngs, shape, axes, zeros)} if self.kind == "layer" else {})

    def __call__(self, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        if self.kind == "rms":
            return rms_norm(x, scale, self.epsilon)
        return layer_norm(x, scale, bias, self.epsilon)


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """How queries and keys are normed over the head size: the kind of norm, whether each head has weights of its own,
    and the epsilon (0: that of the trunk's norms)."""

    kind: str
    per_head: bool = False
    epsilon: float = 0.0


# 'plain' has no weights: where the modulation carries shift and scale (DiT).
NORMS = ("rms", "layer", "plain")
# 'layer' is Chameleon's (arXiv 2405.09818, section 2.3.1), as released: the epsilon is PyTorch's whatever the trunk's.
# 'l2' has no weights of a norm, but a factor per head (VAR).
QK_NORMS = {"none": None, "rms": HeadNorm("rms"), "layer": HeadNorm("layer", per_head=True, epsilon=1e-5), "l2": None}
BIASES = ("qkv", "out", "ffn")


class Block(nnx.Module):
    """The weights of one expert in all layers (leading axis): those of `groups`, see `GROUPS`."""

    def __init__(self, config: Any, rngs: nnx.Rngs, groups: Collection[str] = GROUPS):
        """`config` is a `transfusion.model.config.TransformerConfig`."""
        d, h, g, k, f, n = (
            config.width, config.heads, config.groups, config.size, config.hidden, config.layers,
        )  # fmt: skip
        self.norm = Norm(config.norm, config.norm_epsilon)
        self.ffn_norm_rule = Norm(config.norm, config.ffn_norm_epsilon or config.norm_epsilon)
        self.post, self.activation = config.norm_place == "post", config.ffn_kind
        rule, self.unit_heads = QK_NORMS[config.qk_norm], config.qk_norm == "l2"
        self.qk_norm = rule and Norm(rule.kind, rule.epsilon or config.norm_epsilon)
        # The two projections onto the residual stream start smaller by sqrt(2 * layers) (GPT-2).
        out = 2 * n

        def matrix(name, shape, axes, size, bias):
            setattr(self, name, param(rngs, (n, *shape), ("layers", *axes), fan_in(size)))
            if bias:
                inputs = 2 if name == "o" else 1
                setattr(self, f"{name}_bias", param(rngs, (n, *shape[inputs:]), ("layers", *axes[inputs:]), zeros))

        def norm(name, width):
            for suffix, weight in self.norm.declare(rngs, (n,), width).items():
                setattr(self, name + suffix, weight)

        if "norms" in groups:
            norm("attention_norm", d)
        if "qkv" in groups:
            matrix("q", (d, h, k), ("embed", "heads", None), d, "qkv" in config.biases)
            matrix("k", (d, g, k), ("embed", "kv_heads", None), d, "qkv" in config.biases)
            matrix("v", (d, g, k), ("embed", "kv_heads", None), d, "qkv" in config.biases)
        if "o" in groups:
            matrix("o", (h, k, d), ("heads", None, "embed"), h * k * out, "out" in config.biases)
        if "qk_norm" in groups and config.qk_norm == "l2":
            self.qk_scale = param(rngs, (n, h), ("layers", "heads"), constant(math.log(4)))
        elif "qk_norm" in groups and rule:
            for name, count, axis in (("q_norm", h, "heads"), ("k_norm", g, "kv_heads")):
                of_heads = ((count, axis),) if rule.per_head else ()
                for suffix, weight in self.qk_norm.declare(rngs, (n,), k, of_heads).items():
                    setattr(self, name + suffix, weight)
        if "norms" in groups:
            norm("ffn_norm", d)
        if "ffn" in groups:
            bias = "ffn" in config.biases
            if config.ffn_kind == "swiglu":
                matrix("gate", (d, f), ("embed", "mlp"), d, bias)
            matrix("up", (d, f), ("embed", "mlp"), d, bias)
            matrix("down", (f, d), ("mlp", "embed"), f * out, bias)

    # The methods below run on one layer's slice: the leading axis is gone.

    def _weight(self, name: str) -> jax.Array | None:
        return getattr(self, name)[...] if hasattr(self, name) else None

    def _dense(self, x: jax.Array, name: str) -> jax.Array:
        return dense(x, getattr(self, name)[...], self._weight(f"{name}_bias"))

    def _normed(self, x: jax.Array, name: str) -> jax.Array:
        norm = self.ffn_norm_rule if name == "ffn_norm" else self.norm
        return norm(x, self._weight(name), self._weight(f"{name}_bias"))

    def before(self, x: jax.Array, name: str, modulation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """What a sublayer reads of x: normed unless norms come after sublayers, then shifted and scaled."""
        y = x if self.post else self._normed(x, name)
        return y if modulation is None else y * (1 + modulation[1]) + modulation[0]

    def after(self, y: jax.Array, name: str, gate: jax.Array | None) -> jax.Array:
        """What a sublayer adds to the residual stream."""
        y = self._normed(y, name) if self.post else y
        return y if gate is None else y * gate

    def queries_keys_values(
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array] | None, modulation: list[jax.Array] | None = None
    ) -> tuple[jax.Array, ...]:
        """x [B, N, D], turn as of `rope.turns` -> q [B, N, H, K], k and v [B, N, G, K].

        `modulation`: the `MODULATIONS` of every token, [B, N, D] each.
        """
        return self.heads(self.before(x, "attention_norm", None if modulation is None else modulation[:2]), turn)

    def heads(self, y: jax.Array, turn: tuple[jax.Array, jax.Array] | None) -> tuple[jax.Array, ...]:
        """What attention reads [B, N, D] -> q, k, v."""
        q, k, v = self._dense(y, "q"), self._dense(y, "k"), self._dense(y, "v")
        if self.qk_norm is not None:
            q = self.qk_norm(q, self._weight("q_norm"), self._weight("q_norm_bias"))
            k = self.qk_norm(k, self._weight("k_norm"), self._weight("k_norm_bias"))
        elif self.unit_heads:
            # Attention divides by sqrt(K), which has no place here.
            scale = jnp.exp(jnp.minimum(self.qk_scale[...], math.log(100))) * q.shape[-1] ** 0.5
            q, k = unit(q) * scale[None, None, :, None].astype(q.dtype), unit(k)
        return (q, k, v) if turn is None else (rope.rotate(q, turn), rope.rotate(k, turn), v)

    def project(self, attended: jax.Array) -> jax.Array:
        """The attention output [B, N, H, K] -> [B, N, D]."""
        o = self.o[...]
        return dense(attended.reshape(*attended.shape[:2], -1), o.reshape(-1, o.shape[-1]), self._weight("o_bias"))

    def feed_forward(self, y: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        act = ACTIVATIONS[self.activation]
        up = self._dense(y, "up")
        hidden = act(self._dense(y, "gate")) * up if self.activation == "swiglu" else act(up)
        return self._dense(constrain(hidden, "batch", "tokens", "act_mlp"), "down")

    def add_attention(
        self,
        x: jax.Array,
        attended: jax.Array,
        modulation: list[jax.Array] | None = None,
        extra: jax.Array | None = None,
    ) -> jax.Array:
        """Adds the attention output [B, N, H, K] and `extra` to x [B, N, D]."""
        x = x + self.after(self.project(attended), "attention_norm", None if modulation is None else modulation[2])
        return x if extra is None else x + extra

    def add_feed_forward(self, x: jax.Array, modulation: list[jax.Array] | None = None) -> jax.Array:
        """Adds the feed-forward layer to x [B, N, D]."""
        y = self.before(x, "ffn_norm", None if modulation is None else modulation[3:5])
        return x + self.after(self.feed_forward(y), "ffn_norm", None if modulation is None else modulation[5])
