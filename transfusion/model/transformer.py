"""The trunk: a pre-norm Transformer whose weights are chosen per token by a static slice, its expert.

Llama's block (RMSNorm, rotary positions, grouped-query attention, SwiGLU), as in the Transfusion paper, section 4.1.
One expert for all streams is a dense model; one per stream is a Mixture-of-Transformers (arXiv 2411.04996): every
weight of a block exists once per expert and attention stays global.

Shape letters: B rows, N tokens of a stream, L tokens of a row, D width, H heads, G key-value heads, K head size,
F hidden width of the feed-forward layer. A parameter with the leading axis `layers` is stacked over the depth.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.errors import UsageError, nearest
from transfusion.masks import Metadata, see
from transfusion.model import rope
from transfusion.model.attention import BACKENDS, joined_attention
from transfusion.model.parameters import fan_in, ones, param
from transfusion.sharding import constrain

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of the trunk.

    Attributes:
      width, layers, heads: D, depth, H.
      kv_heads: G; 0 means H.
      head_size: K; 0 means D / H.
      ffn: F; 0 means 8/3 D rounded up to a multiple of `ffn_multiple`.
      qk_norm: RMSNorm of queries and keys per head (Chameleon-type stability).
      rope_theta, rope_sections: see `transfusion.model.rope.angles`.
      dtype: of the computation ('float32' or 'bfloat16'); parameters stay float32.
      remat: 'none', 'full' (keep nothing of a layer) or 'dots' (keep its matrix products).
      scan: one compiled layer for all (fast compilation), or unrolled (a few per cent faster on tiny models).
      attention: a key of `transfusion.model.attention.BACKENDS`.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 0
    head_size: int = 0
    ffn: int = 0
    ffn_multiple: int = 64
    qk_norm: bool = False
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    rope_axes: int = 1
    rope_sections: tuple[int, ...] = ()
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    attention: str = "dense"

    def __post_init__(self):
        tables = {"dtype": ("float32", "bfloat16"), "remat": REMAT, "attention": BACKENDS}
        for field, known in tables.items():
            value = getattr(self, field)
            if value not in known:
                raise UsageError(f"model.{field}: {value!r} is none of {', '.join(known)}{nearest(value, known)}")
        if min(self.width, self.layers, self.heads) < 1:
            raise UsageError("model: width, layers and heads must be positive")
        if not self.head_size and self.width % self.heads:
            raise UsageError(f"model: {self.heads} heads do not divide width {self.width}; set model.head_size")
        if self.heads % self.groups:
            raise UsageError(f"model: kv_heads {self.groups} does not divide heads {self.heads}")
        if self.size % 2:
            raise UsageError(f"model: head_size {self.size} must be even (rotary pairs)")

    @property
    def groups(self) -> int:
        """G, key-value heads."""
        return self.kv_heads or self.heads

    @property
    def size(self) -> int:
        """K, head size."""
        return self.head_size or self.width // self.heads

    @property
    def hidden(self) -> int:
        """F, hidden width of the feed-forward layer."""
        return self.ffn or -(-(8 * self.width) // (3 * self.ffn_multiple)) * self.ffn_multiple


# Table 2 of the Transfusion paper; F is Llama's: 8/3 D rounded up to a multiple of 256.
PRESETS: dict[str, TransformerConfig] = {
    name: TransformerConfig(width=d, layers=n, heads=h, ffn_multiple=256, dtype="bfloat16", remat="full")
    for name, n, d, h in (
        ("0.16B", 16, 768, 12),
        ("0.37B", 24, 1024, 16),
        ("0.76B", 24, 1536, 24),
        ("1.4B", 24, 2048, 16),
        ("7B", 32, 4096, 32),
    )
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of every layer: [layers, B, S, G, K] each, with the metadata [B, S] of their tokens."""

    k: jax.Array
    v: jax.Array
    metadata: Metadata


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """RMSNorm (arXiv 1910.07467) over the last axis, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    return (y * scale).astype(x.dtype)


def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, N, in] times kernel [in, out...] -> [B, N, out...].

    Tokens are flattened to one axis: XLA:CPU leaves its fast matrix product when a weight gradient contracts two axes.
    """
    out = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[0], -1).astype(x.dtype)
    return out.reshape(*x.shape[:-1], *kernel.shape[1:])


class Block(nnx.Module):
    """The weights of one expert in all layers (leading axis), and the two halves of a layer around attention."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        d, h, g, k, f, n = (
            config.width, config.heads, config.groups, config.size, config.hidden, config.layers,
        )  # fmt: skip
        self.epsilon = config.norm_epsilon
        self.qk_norm = config.qk_norm
        # The two projections onto the residual stream start smaller by sqrt(2 * layers) (GPT-2).
        out = 2 * n
        self.attention_norm = param(rngs, (n, d), ("layers", None), ones)
        self.q = param(rngs, (n, d, h, k), ("layers", "embed", "heads", None), fan_in(d))
        self.k = param(rngs, (n, d, g, k), ("layers", "embed", "kv_heads", None), fan_in(d))
        self.v = param(rngs, (n, d, g, k), ("layers", "embed", "kv_heads", None), fan_in(d))
        self.o = param(rngs, (n, h, k, d), ("layers", "heads", None, "embed"), fan_in(h * k * out))
        if config.qk_norm:
            self.q_norm = param(rngs, (n, k), ("layers", None), ones)
            self.k_norm = param(rngs, (n, k), ("layers", None), ones)
        self.ffn_norm = param(rngs, (n, d), ("layers", None), ones)
        self.gate = param(rngs, (n, d, f), ("layers", "embed", "mlp"), fan_in(d))
        self.up = param(rngs, (n, d, f), ("layers", "embed", "mlp"), fan_in(d))
        self.down = param(rngs, (n, f, d), ("layers", "mlp", "embed"), fan_in(f * out))

    # The methods below run on one layer's slice: the leading axis is gone.

    def queries_keys_values(self, x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        """x [B, N, D], turn as of `rope.turns` -> q [B, N, H, K], k and v [B, N, G, K]."""
        x = rms_norm(x, self.attention_norm[...], self.epsilon)
        q, k, v = dense(x, self.q[...]), dense(x, self.k[...]), dense(x, self.v[...])
        if self.qk_norm:
            q, k = rms_norm(q, self.q_norm[...], self.epsilon), rms_norm(k, self.k_norm[...], self.epsilon)
        return rope.rotate(q, turn), rope.rotate(k, turn), v

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Adds the attention output [B, N, H, K] and the feed-forward layer to x [B, N, D]."""
        o = self.o[...]
        x = x + dense(attended.reshape(*x.shape[:-1], -1), o.reshape(-1, o.shape[-1]))
        y = rms_norm(x, self.ffn_norm[...], self.epsilon)
        hidden = jax.nn.silu(dense(y, self.gate[...])) * dense(y, self.up[...])
        return x + dense(constrain(hidden, "batch", None, "act_mlp"), self.down[...])


class Trunk(nnx.Module):
    """All layers of all experts, and the final norms.

    Streams that share an expert are joined along the row into one larger matrix product.
    """

    def __init__(self, config: TransformerConfig, experts: Mapping[str, str], rngs: nnx.Rngs):
        """`experts` maps each stream to its expert, in the order of the config's streams."""
        self.config = config
        self.experts = dict(experts)
        names = list(dict.fromkeys(experts.values()))
        self.blocks = nnx.Dict({name: Block(config, rngs) for name in names})
        self.final_norm = nnx.Dict({name: param(rngs, (config.width,), (None,), ones) for name in names})

    def __call__(
        self,
        x: Mapping[str, jax.Array],
        position: Mapping[str, jax.Array],
        metadata: Mapping[str, Metadata],
        *,
        cache: KeyValues | None = None,
        may: np.ndarray | None = None,
        keep: bool = False,
    ) -> tuple[dict[str, jax.Array], KeyValues | None]:
        """Runs the trunk over some streams' tokens.

        Args:
          x: per stream [B, N, D].
          position: per stream int32 [B, N, A].
          metadata: per stream [B, N].
          cache: keys and values that the tokens may see besides each other.
          may: see `transfusion.masks.see`.
          keep: whether to return the new tokens' keys and values.

        Returns:
          Normed outputs per stream [B, N, D], and the new KeyValues (tokens in the order of the groups) or None.
        """
        config = self.config
        groups: dict[str, list[str]] = {}
        for stream in x:
            groups.setdefault(self.experts[stream], []).append(stream)
        ordered = [stream for streams in groups.values() for stream in streams]
        tokens = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *[metadata[s] for s in ordered])
        joined, turn = {}, {}
        for expert, streams in groups.items():
            joined[expert] = constrain(_join(x, streams).astype(config.dtype), "batch", None, None)
            angle = rope.angles(_join(position, streams), config.size, config.rope_theta, config.rope_sections)
            turn[expert] = rope.turns(angle)
        sizes = [part.shape[1] for part in joined.values()]
        backend = BACKENDS[config.attention]
        if cache is None:
            plan = backend.plan(tokens, tokens, may)
        else:
            sees_cache, sees_new = see(tokens, cache.metadata, may), see(tokens, tokens, may)

        def layer(carry, scanned):
            weights, cached = scanned
            parts = {e: _bind(self.blocks[e], weights[e]) for e in groups}
            qkv = [parts[e].queries_keys_values(carry[e], turn[e]) for e in groups]
            q, k, v = (jnp.concatenate(t, 1) if len(t) > 1 else t[0] for t in zip(*qkv, strict=True))
            q, k, v = (constrain(t, "batch", None, "act_heads", None) for t in (q, k, v))
            if cached is None:
                seen = backend.attend(q, k, v, plan)
            else:
                seen = joined_attention(q, [(*cached, sees_cache), (k, v, sees_new)])
            outs = jnp.split(seen, np.cumsum(sizes)[:-1], axis=1)
            new = {e: parts[e].finish(carry[e], out) for e, out in zip(groups, outs, strict=True)}
            return {e: constrain(y, "batch", None, None) for e, y in new.items()}, ((k, v) if keep else None)

        if REMAT[config.remat] is not None:
            layer = jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=not config.scan)
        weights = {e: nnx.to_pure_dict(nnx.state(self.blocks[e], nnx.Param)) for e in groups}
        scanned = (weights, None if cache is None else (cache.k, cache.v))
        if config.scan:
            out, kept = jax.lax.scan(layer, joined, scanned)
        else:
            out, kept = _unrolled(layer, joined, scanned, config.layers)
        result = {}
        for expert, streams in groups.items():
            y = rms_norm(out[expert], self.final_norm[expert][...], config.norm_epsilon)
            parts = jnp.split(y, np.cumsum([x[s].shape[1] for s in streams])[:-1], axis=1)
            result |= dict(zip(streams, parts, strict=True))
        return result, (KeyValues(*kept, tokens) if keep else None)


def _join(parts: Mapping[str, jax.Array], streams: list[str]) -> jax.Array:
    return jnp.concatenate([parts[s] for s in streams], 1) if len(streams) > 1 else parts[streams[0]]


def _bind(block: Block, weights: dict[str, jax.Array]) -> Block:
    """The block with one layer's weights."""
    graph, state = nnx.split(block)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def by_layer(params: dict[str, Any]) -> dict[str, Any]:
    """The trunk's parameters with a tuple of layers in place of each stacked array, for an unrolled trunk in a loop.

    The compiler would take the slices anew in every step, which reads and writes all weights once more; the barrier
    holds them outside.
    """

    def split(x):
        return jax.lax.optimization_barrier(tuple(x[i] for i in range(x.shape[0])))

    return params | {"blocks": jax.tree.map(split, params["blocks"])}


def _unrolled(layer, carry, scanned, layers: int):
    """jax.lax.scan as a Python loop: the compiler sees every layer."""
    kept = []
    for i in range(layers):
        # A tuple holds a parameter's layers one by one (see `by_layer`).
        weights = {e: {name: w[i] for name, w in block.items()} for e, block in scanned[0].items()}
        carry, out = layer(carry, (weights, jax.tree.map(lambda x, i=i: x[i], scanned[1])))
        kept.append(out)
    return carry, None if kept[0] is None else jax.tree.map(lambda *x: jnp.stack(x), *kept)
