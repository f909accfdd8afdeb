"""A block holds the weights of one expert, and computes the parts of a layer before and after attention.

`transfusion.model.transformer` explains the shape letters. A parameter with the leading axis `layers` is stacked over
the depth.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.model import rope
from transfusion.model.gathered import gathered_product, gathers
from transfusion.model.parameters import array, constant, fan_in, ones, param, zeros
from transfusion.sharding import constrain, flat

# The groups of weights that an expert may own. It uses the first expert's weights for groups that it does not own.
# Mixture-of-Transformers gives every expert all of them.
GROUPS = ("qkv", "o", "qk_norm", "ffn", "norms", "final_norm")
# The weights of each group that are multiplied with tokens, in the dtype of the tokens. Norms compute in float32.
MATRICES_OF = {"qkv": ("q", "k", "v"), "o": ("o",), "ffn": ("gate", "up", "down")}
FFN_WEIGHTS = (*MATRICES_OF["ffn"], *(f"{name}_bias" for name in MATRICES_OF["ffn"]))
MATRICES = {name for names in MATRICES_OF.values() for name in names}
# Shift, scale and gate of attention, then those of the feed-forward layer (DiT, arXiv 2212.09748, section 3.2).
MODULATIONS = 6
ACTIVATIONS = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}
# The kinds of feed-forward layers of a trunk, and the activation of each.
FFN_KINDS = {"swiglu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_tanh"}


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """RMSNorm (arXiv 1910.07467) over the last axis, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    return (y * broadcast_to_rank(scale, y.ndim)).astype(x.dtype)


def unit(x: jax.Array) -> jax.Array:
    """Divides the vectors along the last axis by their length, in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(y), -1, keepdims=True), 1e-24))).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """LayerNorm (arXiv 1607.06450) over the last axis, in float32; `scale` and `bias` may be None."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    y = y if scale is None else y * broadcast_to_rank(scale, y.ndim)
    return (y if bias is None else y + broadcast_to_rank(bias, y.ndim)).astype(x.dtype)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, embed: int | None = None) -> jax.Array:
    """x [B, N, in] times kernel [in, out...] (plus bias [out...]) -> [B, N, out...].

    Tokens are flattened to one axis: XLA:CPU leaves its fast matrix product when a weight gradient contracts two axes.
    `embed` is 0 or 1 if the first or the other axes of the kernel are split over devices as "embed" is in
    `transfusion.sharding.RULES`.
    """
    tokens = flat(x) if x.ndim == 3 else x.reshape(-1, x.shape[-1])
    matrix = kernel.reshape(kernel.shape[0], -1).astype(x.dtype)
    gathered = embed is not None and gathers(x, matrix, embed)
    out = gathered_product(x, matrix, embed) if gathered else _product(tokens, matrix)
    out = out.reshape(*x.shape[:-1], *kernel.shape[1:])
    return out if bias is None else out + broadcast_to_rank(bias.astype(x.dtype), out.ndim)


def cast_once(weights: Mapping[str, Any], dtype: Any, besides: Collection[str] = ()) -> dict[str, Any]:
    """Casts the `MATRICES` among stacked weights to the dtype of the computation, except those named in `besides`.

    A trunk does this before its layers. Inside of them each layer's matrices would be cast when it runs, and again when
    it is recomputed. The gradient of a matrix then has this dtype, too, until it leaves the trunk. Nothing changes if
    the dtypes are equal.

    Args:
      weights: a dict of arrays, or of dicts of them, by the names of parameters.
    """

    def cast(name: str, w: Any) -> Any:
        if isinstance(w, Mapping):
            return cast_once(w, dtype, besides)
        if name not in MATRICES or name in besides:
            return w
        return jax.tree.map(lambda x: x.astype(dtype), w)  # a sampler has the layers apart

    return {name: cast(name, w) for name, w in weights.items()}


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [n, in] times a matrix [in, out]; one row on a GPU is multiplied as two.

    XLA:GPU makes an elementwise product and a sum of the product of one row, which reads the matrix, writes as much and
    reads it again. The product of two rows reads the matrix once.
    """
    if len(x) > 1:
        return x @ matrix
    return jax.lax.platform_dependent(
        x, matrix, cuda=lambda x, matrix: (jnp.concatenate([x, x]) @ matrix)[:1], default=jnp.matmul
    )


def per_token(of_items: jax.Array, item: jax.Array, aligned: bool) -> jax.Array:
    """Gives each token the vector of its item: [B, M, C] and `item` [B, N] -> [B, N, C].

    `aligned` says that item m owns the m-th N / M slots of each row, so that vectors need only be repeated.
    """
    if aligned:
        return jnp.repeat(of_items, item.shape[1] // of_items.shape[1], axis=1)
    return jnp.take_along_axis(of_items, item[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Norm:
    """A kind of norm, one of `NORMS`: it declares the weights of such norms, and applies them."""

    kind: str
    epsilon: float

    def declare(
        self, rngs: nnx.Rngs, lead: tuple[int, ...], width: int, each: tuple[tuple[int, str], ...] = ()
    ) -> tuple[nnx.Param | None, nnx.Param | None]:
        """Declares the scale and the bias of a norm, which are None if norms of this kind have none.

        They are stacked over `lead`, and over the axes (size, logical name) of `each`.
        """
        axes = ("layers",) * len(lead) + tuple(axis for _, axis in each) + (None,)
        shape = (*lead, *(size for size, _ in each), width)
        scale = None if self.kind == "plain" else param(rngs, shape, axes, ones)
        return scale, param(rngs, shape, axes, zeros) if self.kind == "layer" else None

    def __call__(self, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        if self.kind == "rms":
            return rms_norm(x, scale, self.epsilon)
        return layer_norm(x, scale, bias, self.epsilon)


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """How queries and keys are normed over the head size.

    Attributes:
      kind: the kind of norm, one of `NORMS`.
      per_head: whether each head has weights of its own.
      epsilon: the epsilon of the norm; 0 means that of the trunk's norms.
    """

    kind: str
    per_head: bool = False
    epsilon: float = 0.0


# 'plain' norms have no weights: in DiT the modulation gives shift and scale.
NORMS = ("rms", "layer", "plain")
# 'layer' is the norm of Chameleon (arXiv 2405.09818, section 2.3.1). Its released models use PyTorch's default epsilon
# here, whatever that of the trunk is. 'l2' (VAR) makes queries and keys unit vectors, and learns a factor per head.
QK_NORMS = {"none": None, "rms": HeadNorm("rms"), "layer": HeadNorm("layer", per_head=True, epsilon=1e-5), "l2": None}
BIASES = ("qkv", "out", "ffn")


class Block(nnx.Module):
    """The weights of one expert in all layers, stacked; weights of a group of `GROUPS` not in `groups` are None."""

    def __init__(self, config: Any, rngs: nnx.Rngs, groups: Collection[str] = GROUPS):
        """`config` is a `transfusion.model.config.TransformerConfig`."""
        d, h, g, k, f, n = (
            config.width, config.heads, config.groups, config.size, config.hidden, config.layers,
        )  # fmt: skip
        self.norm = Norm(config.norm, config.norm_epsilon)
        self.ffn_norm_rule = Norm(config.norm, config.released.ffn_norm_epsilon or config.norm_epsilon)
        self.post, self.activation = config.norm_place == "post", FFN_KINDS[config.ffn_kind]
        rule, unit_heads = QK_NORMS[config.qk_norm], config.qk_norm == "l2"
        self.qk_norm = rule and Norm(rule.kind, rule.epsilon or config.norm_epsilon)
        # As in GPT-2, the two projections onto the residual stream start smaller by a factor of sqrt(2 * layers).
        out = 2 * n

        def weight(there: bool, shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> nnx.Param | None:
            return param(rngs, (n, *shape), ("layers", *axes), init) if there else None

        def norm(there: bool) -> tuple[nnx.Param | None, nnx.Param | None]:
            return self.norm.declare(rngs, (n,), d) if there else (None, None)

        def head_norm(count: int, axis: str) -> tuple[nnx.Param | None, nnx.Param | None]:
            if rule is None or "qk_norm" not in groups:
                return None, None
            return self.qk_norm.declare(rngs, (n,), k, ((count, axis),) if rule.per_head else ())

        # Initial values depend on the order in which parameters are declared.
        self.attention_norm, self.attention_norm_bias = norm("norms" in groups)
        there, biased = "qkv" in groups, "qkv" in groups and "qkv" in config.biases
        self.q = weight(there, (d, h, k), ("embed", "heads", None), fan_in(d))
        self.q_bias = weight(biased, (h, k), ("heads", None), zeros)
        self.k = weight(there, (d, g, k), ("embed", "kv_heads", None), fan_in(d))
        self.k_bias = weight(biased, (g, k), ("kv_heads", None), zeros)
        self.v = weight(there, (d, g, k), ("embed", "kv_heads", None), fan_in(d))
        self.v_bias = weight(biased, (g, k), ("kv_heads", None), zeros)
        there, biased = "o" in groups, "o" in groups and "out" in config.biases
        self.o = weight(there, (h, k, d), ("heads", None, "embed"), fan_in(h * k * out))
        self.o_bias = weight(biased, (d,), ("embed",), zeros)
        self.qk_scale = weight("qk_norm" in groups and unit_heads, (h,), ("heads",), constant(math.log(4)))
        self.q_norm, self.q_norm_bias = head_norm(h, "heads")
        self.k_norm, self.k_norm_bias = head_norm(g, "kv_heads")
        self.ffn_norm, self.ffn_norm_bias = norm("norms" in groups)
        there, biased = "ffn" in groups, "ffn" in groups and "ffn" in config.biases
        gated = config.ffn_kind == "swiglu"
        self.gate = weight(there and gated, (d, f), ("embed", "mlp"), fan_in(d))
        self.gate_bias = weight(biased and gated, (f,), ("mlp",), zeros)
        self.up = weight(there, (d, f), ("embed", "mlp"), fan_in(d))
        self.up_bias = weight(biased, (f,), ("mlp",), zeros)
        self.down = weight(there, (f, d), ("mlp", "embed"), fan_in(f * out))
        self.down_bias = weight(biased, (d,), ("embed",), zeros)

    # The methods below run on the weights of a single layer, which have no leading axis.

    def attention_input(self, x: jax.Array, modulation: Sequence[jax.Array] | None) -> jax.Array:
        """Norms tokens x [B, N, D] for attention, and applies the shift and scale that `modulation` begins with."""
        y = x if self.post else self.norm(x, array(self.attention_norm), array(self.attention_norm_bias))
        return y if modulation is None else y * (1 + modulation[1]) + modulation[0]

    def queries_keys_values(
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array] | None, modulation: list[jax.Array] | None = None
    ) -> tuple[jax.Array, ...]:
        """The queries [B, N, H, K], keys and values [B, N, G, K] of tokens x [B, N, D].

        `turn` comes from `rope.turns`; `modulation` has the `MODULATIONS` of every token, [B, N, D] each.
        """
        return self.heads(self.attention_input(x, modulation), turn)

    def heads(self, y: jax.Array, turn: tuple[jax.Array, jax.Array] | None) -> tuple[jax.Array, ...]:
        """The queries, keys and values of tokens y [B, N, D] that `attention_input` returned."""
        q = dense(y, self.q[...], array(self.q_bias), embed=0)
        k = dense(y, self.k[...], array(self.k_bias), embed=0)
        v = dense(y, self.v[...], array(self.v_bias), embed=0)
        if self.qk_norm is not None:
            q = self.qk_norm(q, array(self.q_norm), array(self.q_norm_bias))
            k = self.qk_norm(k, array(self.k_norm), array(self.k_norm_bias))
        elif self.qk_scale is not None:
            # The factor sqrt(K) undoes the division in attention, which unit vectors do not need.
            scale = jnp.exp(jnp.minimum(self.qk_scale[...], math.log(100))) * q.shape[-1] ** 0.5
            q, k = unit(q) * scale[None, None, :, None].astype(q.dtype), unit(k)
        return (q, k, v) if turn is None else (rope.rotate(q, turn), rope.rotate(k, turn), v)

    def project(self, attended: jax.Array) -> jax.Array:
        """Projects the output of attention to the width of the trunk: [B, N, H, K] -> [B, N, D]."""
        o = self.o[...]
        return dense(attended.reshape(*attended.shape[:2], -1), o.reshape(-1, o.shape[-1]), array(self.o_bias), embed=1)

    def feed_forward(self, y: jax.Array) -> jax.Array:
        """The feed-forward layer alone, without norm and residual: [B, N, D] -> [B, N, D]."""
        act = ACTIVATIONS[self.activation]
        up = dense(y, self.up[...], array(self.up_bias), embed=0)
        hidden = act(up) if self.gate is None else act(dense(y, self.gate[...], array(self.gate_bias), embed=0)) * up
        return dense(constrain(hidden, "batch", "tokens", "act_mlp"), self.down[...], array(self.down_bias), embed=1)

    def add_attention(self, x: jax.Array, attended: jax.Array, modulation: list[jax.Array] | None = None) -> jax.Array:
        """Adds the attention output [B, N, H, K] to x [B, N, D]."""
        y = self.project(attended)
        y = self.norm(y, array(self.attention_norm), array(self.attention_norm_bias)) if self.post else y
        return x + (y if modulation is None else y * modulation[2])

    def feed_forward_input(self, x: jax.Array, modulation: list[jax.Array] | None = None) -> jax.Array:
        """Norms tokens x [B, N, D] for the feed-forward layers, and applies the shift and scale of `modulation`."""
        y = x if self.post else self.ffn_norm_rule(x, array(self.ffn_norm), array(self.ffn_norm_bias))
        return y if modulation is None else y * (1 + modulation[4]) + modulation[3]

    def add_feed_forward(self, x: jax.Array, y: jax.Array, modulation: list[jax.Array] | None = None) -> jax.Array:
        """Adds the output y of the feed-forward layers to x, [B, N, D] both."""
        y = self.ffn_norm_rule(y, array(self.ffn_norm), array(self.ffn_norm_bias)) if self.post else y
        return x + (y if modulation is None else y * modulation[5])
