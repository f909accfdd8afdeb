"""A Vision Transformer turns images into features (ViT, arXiv 2010.11929; SigLIP, arXiv 2303.15343).

The images have one size, or their patches are packed into rows. Vectors of a learned table of positions are added to
the patches, and pre-LayerNorm blocks with biases follow. A last norm is optional, and so is an output pooled by one
learned query (the 'MAP head', Zhai et al., arXiv 2106.04560). Layers are stacked along a leading axis.

Shape letters: B images, N patches, P patch side, C channels, D width, H heads, K head size, F ffn width.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.errors import UsageError, nearest
from transfusion.model.attention import masked_attention
from transfusion.model.block import ACTIVATIONS, cast_once, layer_norm
from transfusion.model.parameters import bound, fan_in, normal, ones, param, pure, zeros
from transfusion.sharding import by_heads, constrain

CUBIC = -0.75  # the coefficient of PyTorch's bicubic interpolation; that of jax.image.resize is -0.5


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes and parts of a Vision Transformer.

    Attributes:
      width: D.
      ffn: F.
      layers: number of blocks.
      heads: H.
      patch: P, the side of a patch in pixels.
      channels: C, the channels of the image.
      grid: rows and columns of the table of positions.
      activation: a key of `transfusion.model.block.ACTIVATIONS`.
      epsilon: the epsilon of the norms.
      final_norm: whether the last block's output is normalised, see `Features.last`.
      pool: whether there is a pooled output.
      qkv_biases: whether queries, keys and values have biases.
      remat: whether each layer is recomputed in the backward pass, which saves memory.
    """

    width: int = 768
    ffn: int = 3072
    layers: int = 12
    heads: int = 12
    patch: int = 16
    channels: int = 3
    grid: tuple[int, int] = (14, 14)
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    final_norm: bool = True
    pool: bool = True
    qkv_biases: bool = True
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))
        if min(self.width, self.ffn, self.layers, self.heads, self.patch, self.channels, *self.grid) < 1:
            raise UsageError("vit: all sizes must be at least 1")
        if self.width % self.heads:
            raise UsageError(f"vit.heads {self.heads} does not divide vit.width {self.width}")
        if self.activation not in ACTIVATIONS:
            hint = nearest(self.activation, ACTIVATIONS)
            raise UsageError(f"vit.activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}{hint}")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["hidden", "last", "pooled"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Features:
    """The outputs of a ViT.

    Attributes:
      hidden: [layers + 1, B, N, D]; hidden[i] is the input of block i, and hidden[-1] the output of the last block.
      last: [B, N, D], hidden[-1], normalised if the config has `final_norm`.
      pooled: [B, D]; None without `pool`.
    """

    hidden: jax.Array
    last: jax.Array
    pooled: jax.Array | None


def patches_of(pixels: jax.Array, patch: int) -> jax.Array:
    """Cuts images into patches: [B, H, W, C] -> [B, N, P * P * C].

    Patches are in reading order, and the numbers of each patch in (y, x, c) order.

    Raises:
      UsageError: if `patch` does not divide a side.
    """
    b, height, width, c = pixels.shape
    if height % patch or width % patch:
        raise UsageError(f"an image of {height}x{width} pixels does not divide into patches of {patch}x{patch}")
    x = pixels.reshape(b, height // patch, patch, width // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, patch * patch * c)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """The matrix of a bicubic interpolation from `old` samples to `new` ones, float32 [new, old].

    It equals PyTorch's `interpolate` with align_corners=False: the edges of both grids coincide, samples at the border
    are repeated, and nothing is smoothed when the grid shrinks.
    """
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(place).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(place - (first + tap))
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x**2 + 1
        far = CUBIC * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def affine(pattern: str, x: jax.Array, kernel: nnx.Param, bias: nnx.Param | None) -> jax.Array:
    """The einsum `pattern` of x and a kernel, plus the bias if there is one, in the dtype of x."""
    y = jnp.einsum(pattern, x, kernel[...].astype(x.dtype))
    return y if bias is None else y + broadcast_to_rank(bias[...].astype(x.dtype), y.ndim)


class _Layers(nnx.Module):
    """The attention and feed-forward weights of `n` stacked blocks; with n = 0, of one block without a leading axis."""

    def __init__(self, config: ViTConfig, n: int, rngs: nnx.Rngs):
        d, f, h, k = config.width, config.ffn, config.heads, config.width // config.heads
        self.lead, self.axis = ((n,), ("layers",)) if n else ((), ())
        self.declare_norms(d, rngs)

        def weight(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> nnx.Param:
            return param(rngs, (*self.lead, *shape), (*self.axis, *axes), init)

        def bias() -> nnx.Param | None:
            return weight((h, k), ("heads", None), zeros) if config.qkv_biases else None

        # Initial values depend on the order in which parameters are declared.
        self.q, self.q_bias = weight((d, h, k), ("embed", "heads", None), fan_in(d)), bias()
        self.k, self.k_bias = weight((d, h, k), ("embed", "heads", None), fan_in(d)), bias()
        self.v, self.v_bias = weight((d, h, k), ("embed", "heads", None), fan_in(d)), bias()
        self.o = weight((h, k, d), ("heads", None, "embed"), fan_in(d))
        self.o_bias = weight((d,), (None,), zeros)
        self.up = weight((d, f), ("embed", "mlp"), fan_in(d))
        self.up_bias = weight((f,), ("mlp",), zeros)
        self.down = weight((f, d), ("mlp", "embed"), fan_in(f))
        self.down_bias = weight((d,), (None,), zeros)

    def norm(self, width: int, rngs: nnx.Rngs) -> tuple[nnx.Param, nnx.Param]:
        """Declares the scale and the bias of one norm."""
        shape, axes = (*self.lead, width), (*self.axis, None)
        return param(rngs, shape, axes, ones), param(rngs, shape, axes, zeros)

    def attend(self, queries: jax.Array, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attention of queries [B, Q, D] to x [B, N, D], where mask bool [B, Q, N] allows it: -> [B, Q, D]."""
        q = affine("bnd,dhk->bnhk", queries, self.q, self.q_bias)
        k = affine("bnd,dhk->bnhk", x, self.k, self.k_bias)
        v = affine("bnd,dhk->bnhk", x, self.v, self.v_bias)
        return affine("bnhk,hkd->bnd", masked_attention(*by_heads(q, k, v), mask), self.o, self.o_bias)

    def feed(self, x: jax.Array, activation: str) -> jax.Array:
        """The feed-forward layer: [B, N, D] -> [B, N, D]."""
        hidden = ACTIVATIONS[activation](affine("bnd,df->bnf", x, self.up, self.up_bias))
        return affine("bnf,fd->bnd", constrain(hidden, "batch", "tokens", "act_mlp"), self.down, self.down_bias)


class _Blocks(_Layers):
    """The blocks of the tower, with a norm before the attention and one before the feed-forward layer."""

    def declare_norms(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm1_scale, self.norm1_bias = self.norm(width, rngs)
        self.norm2_scale, self.norm2_bias = self.norm(width, rngs)


class _Head(_Layers):
    """The one block of the pooling head, with a norm before the feed-forward layer only."""

    def declare_norms(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm_scale, self.norm_bias = self.norm(width, rngs)


class ViT(nnx.Module):
    """A Vision Transformer, which computes in the dtype of its input.

    `config` is static; everything else is parameters.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        d, size = config.width, config.patch**2 * config.channels
        self.config = config
        self.kernel = param(rngs, (size, d), ("patch", "embed"), fan_in(size))
        self.bias = param(rngs, (d,), (None,), zeros)
        self.positions = param(rngs, (config.grid[0] * config.grid[1], d), (None, "embed"), normal(d**-0.5))
        self.blocks = _Blocks(config, config.layers, rngs)
        if config.final_norm:
            self.norm_scale = param(rngs, (d,), (None,), ones)
            self.norm_bias = param(rngs, (d,), (None,), zeros)
        if config.pool:
            self.probe = param(rngs, (d,), (None,), normal(0.02))
            self.head = _Head(config, 0, rngs)

    def __call__(self, pixels: jax.Array) -> Features:
        """The features of images [B, H, W, C] of one size; the table of positions is interpolated to their grid.

        Raises:
          UsageError: if the patch does not divide a side.
        """
        b, height, width, _ = pixels.shape
        patches = patches_of(pixels, self.config.patch)
        n = patches.shape[1]
        positions = self.resized(height // self.config.patch, width // self.config.patch)
        return self.features(patches, positions[None], jnp.ones((b, n, n), bool))

    def packed(self, patches: jax.Array, places: jax.Array, mask: jax.Array) -> Features:
        """The features of packed patches: a row may hold several images, each of its own size.

        Args:
          patches: [B, N, P * P * C].
          places: int [B, N, 2], the row and column of each patch in the table of positions.
          mask: bool [B, N, N], whether a patch (query, middle axis) sees another one (key, last axis); it should see
            those of its own image.
        """
        table = constrain(self.positions[...], None, None)
        return self.features(patches, table[places[..., 0] * self.config.grid[1] + places[..., 1]], mask)

    def resized(self, rows: int, columns: int) -> jax.Array:
        """The table of positions, interpolated to a grid of `rows` and `columns`: float32 [rows * columns, D]."""
        table = self.positions[...].astype(jnp.float32)
        if (rows, columns) == self.config.grid:
            return table
        down, across = (cubic_weights(old, new) for old, new in zip(self.config.grid, (rows, columns), strict=True))
        table = table.reshape(*self.config.grid, -1)
        return jnp.einsum("ry,cx,yxd->rcd", down, across, table).reshape(rows * columns, -1)

    def features(self, patches: jax.Array, positions: jax.Array, mask: jax.Array) -> Features:
        """The features of packed patches, as `packed`, but given the vectors of their positions [B or 1, N, D]."""
        x = affine("bni,id->bnd", patches, self.kernel, self.bias) + positions.astype(patches.dtype)
        x = constrain(x, "batch", "tokens", None)
        hidden = self._run(x, mask)
        last = hidden[-1]
        if self.config.final_norm:
            last = layer_norm(last, self.norm_scale[...], self.norm_bias[...], self.config.epsilon)
        return Features(hidden, last, self._pool(last, mask) if self.config.pool else None)

    def _run(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Runs all blocks: [B, N, D] -> hidden states [layers + 1, B, N, D]."""
        stacked = cast_once(pure(self.blocks), x.dtype)

        def layer(x: jax.Array, weights: Any) -> tuple[jax.Array, jax.Array]:
            block, eps = bound(self.blocks, weights), self.config.epsilon
            y = layer_norm(x, block.norm1_scale[...], block.norm1_bias[...], eps)
            z = x + block.attend(y, y, mask)
            y = layer_norm(z, block.norm2_scale[...], block.norm2_bias[...], eps)
            return constrain(z + block.feed(y, self.config.activation), "batch", "tokens", None), x

        layer = jax.checkpoint(layer) if self.config.remat else layer
        last, before = jax.lax.scan(layer, x, stacked)
        return jnp.concatenate([before, last[None]])

    def _pool(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Pools all patches that are not padding with one learned query: [B, N, D] -> [B, D]."""
        head = self.head
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        # A patch that sees no other, nor itself, is padding.
        y = head.attend(probe, x, mask.any(-1)[:, None])
        normed = layer_norm(y, head.norm_scale[...], head.norm_bias[...], self.config.epsilon)
        return (y + head.feed(normed, self.config.activation))[:, 0]
