"""How the tokens of a stream enter the trunk. One class per row of `EMBEDS`.

Every embed is called as `embed(inputs, condition, item, place) -> (tokens [B, N, D], skips)`; `skips` is what a head of
the same stream needs that goes round the trunk (None for most). The condition [B, M, D] of a noise level is computed
once per item and never per token.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.model.parameters import fan_in, normal, param, zeros
from transfusion.model.transformer import dense
from transfusion.model.unet import UNetConfig, UNetDown
from transfusion.rows import unpatchify
from transfusion.sequence import Stream

FREQUENCIES = 256


class TimeEmbedding(nnx.Module):
    """Noise levels [B, M] to vectors [B, M, D]: sines and cosines, then a two-layer perceptron (DiT, section 3.2)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = param(rngs, (FREQUENCIES, width), (None, "embed"), normal(0.02))
        self.hidden_bias = param(rngs, (width,), (None,), zeros)
        self.out = param(rngs, (width, width), ("embed", None), normal(0.02))
        self.out_bias = param(rngs, (width,), (None,), zeros)

    def __call__(self, t: jax.Array) -> jax.Array:
        half = FREQUENCIES // 2
        frequency = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / half)
        angle = 1000 * t[..., None].astype(jnp.float32) * frequency
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
        hidden = jax.nn.silu(dense(features, self.hidden[...]) + self.hidden_bias[...])
        return dense(hidden, self.out[...]) + self.out_bias[...]


def per_token(condition: jax.Array, item: jax.Array, aligned: bool) -> jax.Array:
    """Spreads [B, M, D] over the tokens [B, N] of its items; `aligned`: item m owns the m-th N / M slots."""
    if aligned:
        return jnp.repeat(condition, item.shape[1] // condition.shape[1], axis=1)
    return jnp.take_along_axis(condition, item[..., None], axis=1)


def sincos_table(place: jax.Array, width: int) -> jax.Array:
    """Fixed 2-D sine-cosine positions [B, N, D] of places (y, x): a quarter each of sin y, cos y, sin x, cos x."""
    frequency = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    angle = place[..., None].astype(jnp.float32) * frequency.astype(np.float32)
    parts = [f(angle[..., axis, :]) for axis in (0, 1) for f in (jnp.sin, jnp.cos)]
    return jnp.concatenate(parts, -1)


class TokenEmbed(nnx.Module):
    """A table of vectors: ids [B, N]."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.table = param(rngs, (stream.vocabulary, width), ("vocab", "embed"), fan_in(width))

    def __call__(self, inputs, condition, item, place):
        return self.table[...][inputs], None


class LinearPatch(nnx.Module):
    """A linear map of patches [B, N, E] (Transfusion, section 3.1); the noise level is added to the tokens."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.stream = stream
        self.kernel = param(rngs, (stream.features, width), ("patch", "embed"), fan_in(stream.features))
        self.bias = param(rngs, (width,), (None,), zeros)

    def __call__(self, inputs, condition, item, place):
        tokens = dense(inputs, self.kernel[...]) + self.bias[...]
        if condition is not None:
            tokens += per_token(condition, item, self.stream.grid != (0, 0))
        return tokens, None


class UNetPatch(nnx.Module):
    """The down half of the paper's U-Net (section 3.1): items of one fixed grid, the noise level inside the blocks."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.stream = stream
        self.down = UNetDown(stream.channels, stream.patch, width, rngs, config=UNetConfig(width=stream.coder_width))

    def __call__(self, inputs, condition, item, place):
        b, n, _ = inputs.shape
        items = inputs.reshape(-1, self.stream.tokens_per_item, inputs.shape[-1])
        latents = unpatchify(items, self.stream.grid, self.stream.patch)
        condition = condition.reshape(-1, condition.shape[-1])
        tokens, skips = self.down(latents, condition)
        return tokens.reshape(b, n, -1), (skips, condition)


EMBEDS = {"token": TokenEmbed, "linear": LinearPatch, "unet": UNetPatch}
