"""Cross-attention: a sublayer in which tokens see a context that the trunk itself leaves as it is.

DiT's cross-attention block (arXiv 2212.09748, section 3.2) as PixArt-alpha has it (arXiv 2310.00426, section 2.3):
between self-attention and the feed-forward layer, without modulation, its output projection zero at first. There are no
rotary positions. Unlike PixArt, it reads the normed tokens, as every sublayer here does.

Shape letters: see `transfusion.model.transformer`; S tokens of the context.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from transfusion.model.block import Norm, dense
from transfusion.model.parameters import fan_in, param, zeros


class CrossAttention(nnx.Module):
    """The sublayer's weights in all layers (leading axis), one set for all experts of a trunk."""

    def __init__(self, config: Any, rngs: nnx.Rngs):
        """`config` is a `transfusion.model.config.TransformerConfig`."""
        n, d, h, g, k = config.layers, config.width, config.heads, config.groups, config.size
        self.rule = Norm(config.norm, config.norm_epsilon)
        for suffix, weight in self.rule.declare(rngs, (n,), d).items():
            setattr(self, f"norm{suffix}", weight)
        self.q = param(rngs, (n, d, h, k), ("layers", "embed", "heads", None), fan_in(d))
        self.k = param(rngs, (n, d, g, k), ("layers", "embed", "kv_heads", None), fan_in(d))
        self.v = param(rngs, (n, d, g, k), ("layers", "embed", "kv_heads", None), fan_in(d))
        self.o = param(rngs, (n, h, k, d), ("layers", "heads", None, "embed"), zeros)
        if "qkv" in config.biases:
            self.q_bias = param(rngs, (n, h, k), ("layers", "heads", None), zeros)
            self.k_bias = param(rngs, (n, g, k), ("layers", "kv_heads", None), zeros)
            self.v_bias = param(rngs, (n, g, k), ("layers", "kv_heads", None), zeros)
        if "out" in config.biases:
            self.o_bias = param(rngs, (n, d), ("layers", None), zeros)

    def _weight(self, name: str) -> jax.Array | None:
        return getattr(self, name)[...] if hasattr(self, name) else None

    def keys_values(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The context [B, S, D] -> keys and values of every layer, [layers, B, S, G, K] each."""

        def of(name):
            kernel, bias = self._weight(name), self._weight(f"{name}_bias")
            if bias is None:
                return jax.vmap(lambda w: dense(context, w))(kernel)
            return jax.vmap(lambda w, b: dense(context, w, b))(kernel, bias)

        return of("k"), of("v")

    def __call__(self, x: jax.Array, attend: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """x [B, N, D] with what it sees added. On one layer's slice: the leading axis is gone.

        `attend` gives [B, N, H, K] for queries [B, N, H, K].
        """
        y = self.rule(x, self._weight("norm"), self._weight("norm_bias"))
        seen = attend(dense(y, self.q[...], self._weight("q_bias")))
        o = self.o[...].reshape(-1, x.shape[-1])
        return x + dense(seen.reshape(*seen.shape[:2], -1), o, self._weight("o_bias"))
