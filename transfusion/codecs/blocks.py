"""Convolutional building blocks of the image coders. Layout: images NHWC [B, h, w, c], kernels HWIO.

Kernels are cast to the dtype of their input, so the caller chooses the compute dtype by the dtype of the image; norms
and softmax run in float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.model.parameters import Initializer, fan_in, ones, param, zeros

Padding = str | tuple[tuple[int, int], tuple[int, int]]


class Conv(nnx.Module):
    """A 2-D convolution with bias: [B, h, w, inputs] -> [B, h', w', outputs]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        padding: Padding = "SAME",
        *,
        rngs: nnx.Rngs,
        axes: tuple[str | None, str | None] = ("conv_in", "conv_out"),
        init: Initializer | None = None,
    ):
        self.stride, self.padding = stride, padding
        self.kernel = param(
            rngs, (size, size, inputs, outputs), (None, None, *axes), init or fan_in(size * size * inputs)
        )
        self.bias = param(rngs, (outputs,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(x.dtype)


class Linear(nnx.Module):
    """An affine map of the last axis: [..., inputs] -> [..., outputs]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        axes: tuple[str | None, str | None] = ("conv_in", "conv_out"),
        init: Initializer | None = None,
    ):
        self.kernel = param(rngs, (inputs, outputs), axes, init or fan_in(inputs))
        self.bias = param(rngs, (outputs,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,io->...o", x, self.kernel[...].astype(x.dtype)) + self.bias[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over the whole image: [B, h, w, c] -> same. `groups` divides the channels."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6):
        self.groups, self.epsilon = groups, epsilon
        self.scale = param(rngs, (channels,), (None,), ones)
        self.bias = param(rngs, (channels,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        B, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(B, h, w, self.groups, c // self.groups)
        mean = jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        centred = y - mean
        variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(B, h, w, c)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Normalises the channels of each pixel: [..., c] -> same."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = param(rngs, (channels,), (None,), ones)
        self.bias = param(rngs, (channels,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        centred = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """GroupNorm, SiLU, conv, twice, and a shortcut: [B, h, w, inputs] -> [B, h, w, outputs]."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs, groups, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, rngs=rngs)
        self.shortcut = None if inputs == outputs else Conv(inputs, outputs, size=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Single-head self-attention over all pixels, with a residual: [B, h, w, c] -> same."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, rngs=rngs)
        self.query = Linear(channels, channels, rngs=rngs)
        self.key = Linear(channels, channels, rngs=rngs)
        self.value = Linear(channels, channels, rngs=rngs)
        self.output = Linear(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        B, h, w, c = x.shape
        y = self.norm(x).reshape(B, h * w, c)
        scores = jnp.einsum("bqc,bkc->bqk", self.query(y), self.key(y)).astype(jnp.float32)
        weights = jax.nn.softmax(scores * c**-0.5, axis=-1).astype(x.dtype)
        y = self.output(jnp.einsum("bqk,bkc->bqc", weights, self.value(y)))
        return x + y.reshape(B, h, w, c)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles both sides by repeating pixels: [B, h, w, c] -> [B, 2h, 2w, c]."""
    B, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (B, h, 2, w, 2, c)).reshape(B, 2 * h, 2 * w, c)
