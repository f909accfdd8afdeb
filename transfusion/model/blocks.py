"""Convolutional building blocks of the image and clip coders.

Images are [B, h, w, c] with kernels HWIO; clips are [B, T, h, w, c] with kernels THWIO. The argument `time` says what a
block does along time. A block with '' works on images only. A block of clips has a key of `FRAMES`: with 'plain' a
frame sees frames before and after it, and with 'causal' no frame sees a later one (with strides, no later group of
frames). 'first' is causal, too, and the first frame is a group of its own, so that an image is a clip of one frame
(MAGVIT-v2, arXiv 2310.05737, section 3.2; CogVideoX, Wan).

Kernels are cast to the dtype of their input, so the caller chooses the compute dtype by the dtype of the image; norms
and softmax run in float32.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.errors import UsageError
from transfusion.model.parameters import Initializer, fan_in, ones, param, zeros
from transfusion.sharding import by_rows

LAYOUTS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
Padding = str | tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Frames:
    """What a block of clips does along time.

    Attributes:
      padding: how many frames of zeros are put before and after a clip for a kernel of `size` frames that moves by
        `stride`.
      alone: whether each frame is normalised alone.
      first: frames at the start that no stride joins with others: a clip has so many and a multiple of the stride.
    """

    padding: Callable[[int, int], tuple[int, int]]
    alone: bool = True
    first: int = 0


FRAMES: dict[str, Frames] = {
    "plain": Frames(lambda size, stride: ((size - stride) // 2, (size - stride + 1) // 2), alone=False),
    "causal": Frames(lambda size, stride: (size - stride, 0)),
    "first": Frames(lambda size, stride: (size - 1, 0), first=1),
}


class Conv(nnx.Module):
    """A convolution with bias: [B, h, w, inputs] -> [B, h', w', outputs].

    With `time`, a key of `FRAMES`, it works on clips: [B, T, h, w, inputs] -> [B, T', h', w', outputs]. T must divide
    by `time_stride`, and T' is the quotient (of 'first', both without the first frame). The kernel has `time_size`
    frames, by default as many as rows.
    """

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
        time_size: int = 0,
    ):
        self.strides, self.padding = (stride, stride), padding
        sides = (size, size)
        if time:
            # By default a kernel has as many frames as rows, but no fewer than it moves by: it reads every frame.
            frames = time_size or (size if size >= time_stride else time_stride)
            around = ((size - 1) // 2, size // 2)
            space = (around, around) if isinstance(padding, str) else padding
            sides, self.strides = (frames, size, size), (time_stride, stride, stride)
            self.padding = (FRAMES[time].padding(frames, time_stride), *space)
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
        return by_rows(y + broadcast_to_rank(self.bias[...].astype(x.dtype), y.ndim))


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
        y = jnp.einsum("...i,io->...o", x, self.kernel[...].astype(x.dtype))
        return by_rows(y + broadcast_to_rank(self.bias[...].astype(x.dtype), y.ndim))


class GroupNorm(nnx.Module):
    """Normalises groups of channels over the whole image or clip: [B, ..., c] -> same.

    If `time` is causal, each frame is normalised alone. `groups` must divide the channels.
    """

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6, time: str = ""):
        self.groups, self.epsilon, self.lead = groups, epsilon, 2 if time and FRAMES[time].alone else 1
        self.scale = param(rngs, (channels,), (None,), ones)
        self.bias = param(rngs, (channels,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        y = x.astype(jnp.float32).reshape(*x.shape[: self.lead], -1, self.groups, c // self.groups)
        mean = jnp.mean(y, axis=(-3, -1), keepdims=True)
        centred = y - mean
        variance = jnp.mean(jnp.square(centred), axis=(-3, -1), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        scale, bias = (broadcast_to_rank(weight[...], y.ndim) for weight in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


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
        scale, bias = (broadcast_to_rank(weight[...], y.ndim) for weight in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


class SpatialNorm(nnx.Module):
    """A GroupNorm with a scale and shift per place, linear in its codes (MoVQ, arXiv 2209.09002, section 3.2)."""

    def __init__(self, channels: int, groups: int, codes: int, *, rngs: nnx.Rngs):
        self.group = GroupNorm(channels, groups, rngs=rngs)
        self.gain = Conv(codes, channels, size=1, rngs=rngs)
        self.offset = Conv(codes, channels, size=1, rngs=rngs)

    def __call__(self, x: jax.Array, codes: jax.Array) -> jax.Array:
        """x [B, h, w, c], codes [B, h / n, w / n, codes] with n a power of two -> [B, h, w, c]."""
        gain, offset = self.gain(codes), self.offset(codes)
        while gain.shape[1] < x.shape[1]:
            gain, offset = upsample(gain), upsample(offset)
        return self.group(x) * gain + offset


def make_norm(channels: int, groups: int, rngs: nnx.Rngs, time: str, codes: int) -> GroupNorm | SpatialNorm:
    """Makes the norm of a block: a `SpatialNorm` that reads codes of `codes` channels, or with 0 a `GroupNorm`."""
    if codes:
        return SpatialNorm(channels, groups, codes, rngs=rngs)
    return GroupNorm(channels, groups, rngs=rngs, time=time)


def normed(norm: GroupNorm | SpatialNorm, x: jax.Array, codes: jax.Array | None) -> jax.Array:
    """Applies a norm that `make_norm` made; `codes` are None for one that reads none."""
    return norm(x) if codes is None else norm(x, codes)


class ResidualBlock(nnx.Module):
    """A residual block: norm, SiLU and convolution, twice, and a shortcut. [B, ..., inputs] -> [B, ..., outputs].

    For `codes` see `make_norm`.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs, time: str = "", codes: int = 0):
        self.norm1 = make_norm(inputs, groups, rngs, time, codes)
        self.conv1 = Conv(inputs, outputs, rngs=rngs, time=time)
        self.norm2 = make_norm(outputs, groups, rngs, time, codes)
        self.conv2 = Conv(outputs, outputs, rngs=rngs, time=time)
        self.shortcut = None if inputs == outputs else Conv(inputs, outputs, size=1, rngs=rngs, time=time)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        y = self.conv1(jax.nn.silu(normed(self.norm1, x, codes)))
        y = self.conv2(jax.nn.silu(normed(self.norm2, y, codes)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Self-attention over all pixels of an image, or of each frame, with a residual: [B, ..., h, w, c] -> same.

    For `codes` see `make_norm`.
    """

    def __init__(
        self, channels: int, groups: int, *, rngs: nnx.Rngs, time: str = "", heads: int = 1, codes: int = 0
    ):  # fmt: skip
        self.heads = heads
        self.norm = make_norm(channels, groups, rngs, time, codes)
        self.query = Linear(channels, channels, rngs=rngs)
        self.key = Linear(channels, channels, rngs=rngs)
        self.value = Linear(channels, channels, rngs=rngs)
        self.output = Linear(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        *_, h, w, c = x.shape
        n, each = self.heads, c // self.heads
        y = normed(self.norm, x, codes).reshape(-1, h * w, c)
        q, k, v = (
            jnp.swapaxes(part(y).reshape(-1, h * w, n, each), 1, 2).reshape(-1, h * w, each)
            for part in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bqc,bkc->bqk", q, k).astype(jnp.float32)
        weights = jax.nn.softmax(scores * each**-0.5, axis=-1).astype(x.dtype)
        y = jnp.swapaxes(jnp.einsum("bqk,bkc->bqc", weights, v).reshape(-1, n, h * w, each), 1, 2)
        y = self.output(y.reshape(-1, h * w, c))
        return x + y.reshape(x.shape)


def upsample(x: jax.Array, time: bool = False, first: int = 0) -> jax.Array:
    """Doubles both sides by repeating pixels: [..., h, w, c] -> [..., 2h, 2w, c].

    With `time`, the frames of a clip are doubled, too, but for the `first` ones (0 or 1).
    """
    *lead, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, h, 2, w, 2, c)).reshape(*lead, 2 * h, 2 * w, c)
    return jnp.repeat(x, 2, axis=-4)[..., first:, :, :, :] if time else x


def check_size(height: int, width: int, down: int) -> None:
    """Refuses an image whose sides in pixels do not divide by `down`, as a codec or patch coder needs.

    Raises:
      UsageError: naming the nearest sizes that work.
    """
    if height < 1 or width < 1 or height % down or width % down:
        good = [max(down, round(side / down) * down) for side in (height, width)]
        raise UsageError(
            f"an image of {height}x{width} does not divide by {down}: resize it, for example to {good[0]}x{good[1]}"
        )
