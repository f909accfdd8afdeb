"""Convolutional building blocks of the image and clip coders.

Layout: images [B, h, w, c] with kernels HWIO; clips [B, T, h, w, c] with kernels THWIO. What a block does along time is
a key of `TIMES`: '' knows images only, 'plain' mixes all frames, 'causal' lets no frame see a later one (with strides:
no later group of frames).

Kernels are cast to the dtype of their input, so the caller chooses the compute dtype by the dtype of the image; norms
and softmax run in float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.model.parameters import Initializer, fan_in, ones, param, zeros

LAYOUTS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
Padding = str | tuple[tuple[int, int], tuple[int, int]]
# Padding along time of a kernel of `size` frames that moves by `stride`: so many frames of zeros before and after.
TIMES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "plain": lambda size, stride: ((size - stride) // 2, (size - stride + 1) // 2),
    "causal": lambda size, stride: (size - stride, 0),
}


class Conv(nnx.Module):
    """A convolution with bias: [B, h, w, inputs] -> [B, h', w', outputs], or of clips with `time`, a key of `TIMES`:
    [B, T, h, w, inputs] -> [B, T', h', w', outputs], where T divides by `time_stride` and T' is the quotient."""

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
        time: str = "",
        time_stride: int = 1,
    ):
        self.strides, self.padding = (stride, stride), padding
        sides = (size, size)
        if time:
            # A kernel of one pixel mixes no frames either, but where it drops some.
            frames = size if size >= time_stride else time_stride
            around = ((size - 1) // 2, size // 2)
            space = (around, around) if isinstance(padding, str) else padding
            sides, self.strides = (frames, size, size), (time_stride, stride, stride)
            self.padding = (TIMES[time](frames, time_stride), *space)
        self.kernel = param(
            rngs, (*sides, inputs, outputs), (*(None,) * len(sides), *axes), init or fan_in(math.prod(sides) * inputs)
        )
        self.bias = param(rngs, (outputs,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=self.strides,
            padding=self.padding,
            dimension_numbers=LAYOUTS[len(self.strides)],
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
    """Normalises groups of channels over the whole image or clip (each frame if `time` is 'causal'): [B, ..., c] ->
    same. `groups` divides the channels."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6, time: str = ""):
        self.groups, self.epsilon, self.lead = groups, epsilon, 2 if time == "causal" else 1
        self.scale = param(rngs, (channels,), (None,), ones)
        self.bias = param(rngs, (channels,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        y = x.astype(jnp.float32).reshape(*x.shape[: self.lead], -1, self.groups, c // self.groups)
        mean = jnp.mean(y, axis=(-3, -1), keepdims=True)
        centred = y - mean
        variance = jnp.mean(jnp.square(centred), axis=(-3, -1), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
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
    """GroupNorm, SiLU, conv, twice, and a shortcut: [B, ..., inputs] -> [B, ..., outputs]."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs, time: str = ""):
        self.norm1 = GroupNorm(inputs, groups, rngs=rngs, time=time)
        self.conv1 = Conv(inputs, outputs, rngs=rngs, time=time)
        self.norm2 = GroupNorm(outputs, groups, rngs=rngs, time=time)
        self.conv2 = Conv(outputs, outputs, rngs=rngs, time=time)
        self.shortcut = None if inputs == outputs else Conv(inputs, outputs, size=1, rngs=rngs, time=time)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Single-head self-attention over all pixels of an image, or of each frame, with a residual: [B, ..., h, w, c] ->
    same."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, time: str = ""):
        self.norm = GroupNorm(channels, groups, rngs=rngs, time=time)
        self.query = Linear(channels, channels, rngs=rngs)
        self.key = Linear(channels, channels, rngs=rngs)
        self.value = Linear(channels, channels, rngs=rngs)
        self.output = Linear(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        *_, h, w, c = x.shape
        y = self.norm(x).reshape(-1, h * w, c)
        scores = jnp.einsum("bqc,bkc->bqk", self.query(y), self.key(y)).astype(jnp.float32)
        weights = jax.nn.softmax(scores * c**-0.5, axis=-1).astype(x.dtype)
        y = self.output(jnp.einsum("bqk,bkc->bqc", weights, self.value(y)))
        return x + y.reshape(x.shape)


def upsample(x: jax.Array, time: bool = False) -> jax.Array:
    """Doubles both sides by repeating pixels: [..., h, w, c] -> [..., 2h, 2w, c]; of clips, the frames with `time`."""
    *lead, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, h, 2, w, 2, c)).reshape(*lead, 2 * h, 2 * w, c)
    return jnp.repeat(x, 2, axis=-4) if time else x
