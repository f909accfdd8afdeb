"""Cross-attention: a sublayer in which tokens see a context that the trunk itself leaves as it is.

DiT's cross-attention block (arXiv 2212.09748, section 3.2) as PixArt-alpha has it (arXiv 2310.00426, section 2.3):
between self-attention and the feed-forward layer, without modulation, its output projection zero at first. There are no
rotary positions. Unlike PixArt, it reads the normed tokens, as every sublayer here does.

With a gate it is Flamingo's (arXiv 2204.14198, section 3.2): the tanh of a learned number per layer, 0 at first,
multiplies what the sublayer adds, and the output projection begins at random. Flamingo has a gated feed-forward layer
behind it, and both before the self-attention; here it is followed by the layer's own.

Shape letters: see `transfusion.model.transformer`; S tokens of the context.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.model.block import Norm, dense
from transfusion.model.parameters import array, fan_in, param, zeros


class CrossAttention(nnx.Module):
    """Cross-attention of a whole trunk: its weights are stacked over the layers, and all experts share them."""

    def __init__(self, config: Any, rngs: nnx.Rngs):
        """`config` is a `transfusion.model.config.TransformerConfig`."""
        n, d, h, g, k = config.layers, config.width, config.heads, config.groups, config.size
        self.rule = Norm(config.norm, config.norm_epsilon)
        self.norm, self.norm_bias = self.rule.declare(rngs, (n,), d)
        self.q = param(rngs, (n, d, h, k), ("layers", "embed", "heads", None), fan_in(d))
        self.k = param(rngs, (n, d, g, k), ("layers", "embed", "kv_heads", None), fan_in(d))
        self.v = param(rngs, (n, d, g, k), ("layers", "embed", "kv_heads", None), fan_in(d))
        gated = config.cross_gate == "tanh"
        self.o = param(rngs, (n, h, k, d), ("layers", "heads", None, "embed"), fan_in(h * k) if gated else zeros)

        def bias(group: str, *shape: int, axes: tuple[str | None, ...]) -> nnx.Param | None:
            return param(rngs, (n, *shape), ("layers", *axes), zeros) if group in config.biases else None

        self.q_bias = bias("qkv", h, k, axes=("heads", None))
        self.k_bias = bias("qkv", g, k, axes=("kv_heads", None))
        self.v_bias = bias("qkv", g, k, axes=("kv_heads", None))
        self.o_bias = bias("out", d, axes=(None,))
        self.gate = param(rngs, (n, 1), ("layers", None), zeros) if gated else None

    def keys_values(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Makes every layer's keys and values of the context [B, S, D]: [layers, B, S, G, K] each."""

        def of(kernel: nnx.Param, bias: nnx.Param | None) -> jax.Array:
            if bias is None:
                return jax.vmap(lambda w: dense(context, w))(kernel[...])
            return jax.vmap(lambda w, b: dense(context, w, b))(kernel[...], bias[...])

        return of(self.k, self.k_bias), of(self.v, self.v_bias)

    def __call__(self, x: jax.Array, attend: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Adds the result of cross-attention to x [B, N, D].

        It is called on one layer's slice of the weights, without the leading axis. `attend` gives [B, N, H, K] for
        queries [B, N, H, K].
        """
        y = self.rule(x, array(self.norm), array(self.norm_bias))
        seen = attend(dense(y, self.q[...], array(self.q_bias)))
        o = self.o[...].reshape(-1, x.shape[-1])
        y = dense(seen.reshape(*seen.shape[:2], -1), o, array(self.o_bias))
        return x + (y if self.gate is None else y * jnp.tanh(self.gate[...])[None, None].astype(y.dtype))
