"""The layers over time of Emu3's VQ model (arXiv 2409.18869, section 2.2), between its image coder and its codes.

Convolutions over time and space halve the number of frames of the latents [B, T, h, w, c], or double it. None of them
sees a later frame.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.model.blocks import Conv
from transfusion.model.parameters import ones, param, zeros


class FrozenBatchNorm(nnx.Module):
    """A batch norm (arXiv 1502.03167) whose mean and variance training does not change: [..., c] -> same."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale = param(rngs, (channels,), (None,), ones)
        self.bias = param(rngs, (channels,), (None,), zeros)
        self.mean = param(rngs, (channels,), (None,), zeros)
        self.variance = param(rngs, (channels,), (None,), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        mean, variance, scale, bias = (
            broadcast_to_rank(weight[...], x.ndim) for weight in (self.mean, self.variance, self.scale, self.bias)
        )
        mean, variance = jax.lax.stop_gradient((mean, variance))
        y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


class TimeBlock(nnx.Module):
    """Batch norm, SiLU, convolution over time and space, twice, with a residual: [B, T, h, w, c] -> same."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm1 = FrozenBatchNorm(channels, rngs=rngs)
        self.conv1 = Conv(channels, channels, rngs=rngs, time="causal")
        self.norm2 = FrozenBatchNorm(channels, rngs=rngs)
        self.conv2 = Conv(channels, channels, rngs=rngs, time="causal")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        return x + self.conv2(jax.nn.silu(self.norm2(y)))


class TimeEncoder(nnx.Module):
    """Halves the frames `halvings` times, then `layers` residual blocks: [B, T, h, w, c] -> [B, t, h, w, c]."""

    def __init__(self, channels: int, halvings: int, layers: int, *, rngs: nnx.Rngs):
        kind = {"time": "causal", "time_stride": 2, "time_size": 4}
        self.halve = nnx.List([Conv(channels, channels, rngs=rngs, **kind) for _ in range(halvings)])
        self.blocks = nnx.List([TimeBlock(channels, rngs=rngs) for _ in range(layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.halve:
            x = jax.nn.silu(conv(x))
        for block in self.blocks:
            x = block(x)
        return x


class TimeDecoder(nnx.Module):
    """`layers` residual blocks, then doubles the frames `doublings` times: [B, t, h, w, c] -> [B, T, h, w, c]."""

    def __init__(self, channels: int, doublings: int, layers: int, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([TimeBlock(channels, rngs=rngs) for _ in range(layers)])
        self.double = nnx.List([Conv(channels, channels, rngs=rngs, time="causal") for _ in range(doublings)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        for conv in self.double:
            x = jax.nn.silu(conv(jnp.repeat(x, 2, axis=1)))
        return x
