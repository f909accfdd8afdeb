"""How the trunk's outputs leave a stream. One class per row of `HEADS`; called as `head(hidden, skips)`."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.model.block import ACTIVATIONS, dense, layer_norm, per_token, rms_norm
from transfusion.model.convnext import ConvNeXtConfig, ConvNeXtUp
from transfusion.model.parameters import fan_in, ones, param, zeros
from transfusion.model.unet import UNetConfig, UNetUp
from transfusion.model.vit import patches_of
from transfusion.sequence import Stream
from transfusion.sequence.arrays import Array, Float, Int
from transfusion.sequence.batch import join_items, split_items

Hidden = Float[Array, "B N D"]
Patches = Float[Array, "B N E"]
OfItems = tuple[Float[Array, "B M D"], Int[Array, "B N"]]  # vectors, and the item of each token


class Head(nnx.Module):
    """What every head answers.

    Attributes:
      modulated: whether it reads a vector per item besides the trunk's outputs.
      coder: whether it and the embed of the same name are the halves of a coder, with skips round the trunk.
    """

    modulated: ClassVar[bool] = False
    coder: ClassVar[bool] = False


class TokenHead(Head):
    """Logits [B, N, V], float32. Its objective reads `factors`, so that it may work chunk by chunk."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (width, stream.vocabulary), ("embed", "vocab"), fan_in(width))

    def factors(self, hidden: Hidden) -> tuple[Hidden, Float[Array, "D V"]]:
        """What the logits are the product of: [B, N, D] and [D, V]."""
        return hidden, self.kernel[...]

    def __call__(self, hidden: Hidden, skips) -> Float[Array, "B N V"]:
        return dense(*self.factors(hidden)).astype(jnp.float32)


class PerceptronHead(TokenHead):
    """Logits behind one hidden layer (Janus, arXiv 2410.13848, section 3.1: the head of its codes)."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.activation = stream.connector.activation
        self.hidden = param(rngs, (width, width), (None, "embed"), fan_in(width))
        self.hidden_bias = param(rngs, (width,), (None,), zeros)
        super().__init__(stream, width, rngs)
        self.bias = param(rngs, (stream.vocabulary,), ("vocab",), zeros)

    def factors(self, hidden: Hidden) -> tuple[Float[Array, "B N D+1"], Float[Array, "D+1 V"]]:
        """With the bias as one more row, which a 1 meets: [B, N, D + 1] and [D + 1, V]."""
        y = ACTIVATIONS[self.activation](dense(hidden, self.hidden[...], self.hidden_bias[...]))
        y = jnp.concatenate([y, jnp.ones_like(y[..., :1])], -1)
        return y, jnp.concatenate([self.kernel[...], self.bias[...][None]], 0)


class LinearHead(Head):
    """Patches [B, N, E], float32."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (width, stream.predicted), ("embed", "patch"), fan_in(width))
        self.bias = param(rngs, (stream.predicted,), (None,), zeros)

    def __call__(self, hidden: Hidden, skips) -> Patches:
        y = dense(hidden, self.kernel[...]).astype(jnp.float32)
        return y + broadcast_to_rank(self.bias[...], y.ndim)


class TiedHead:
    """Logits from the token table itself."""

    def __init__(self, embed: nnx.Module):
        self.embed = embed

    def factors(self, hidden: Hidden) -> tuple[Hidden, Float[Array, "D V"]]:
        return hidden, self.embed.table[...].T

    def __call__(self, hidden: Hidden, skips) -> Float[Array, "B N V"]:
        return dense(*self.factors(hidden)).astype(jnp.float32)


class ModulatedHead(Head):
    """DiT's last layer (section 3.2): LayerNorm without weights, shift and scale from the item's vector, linear."""

    modulated = True
    normed: ClassVar[bool] = False

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.stream = stream
        self.norm = param(rngs, (width,), (None,), ones) if self.normed else None
        self.modulation = param(rngs, (width, 2 * width), ("embed", None), zeros)
        self.modulation_bias = param(rngs, (2 * width,), (None,), zeros)
        self.kernel = param(rngs, (width, stream.predicted), ("embed", "patch"), zeros)
        self.bias = param(rngs, (stream.predicted,), (None,), zeros)

    def __call__(self, hidden: Hidden, skips: OfItems) -> Patches:
        """`skips`: the items' vectors [B, M, D] and the items [B, N] of the tokens."""
        vector, item = skips
        parts = dense(jax.nn.silu(vector), self.modulation[...], self.modulation_bias[...])
        shift, scale = jnp.split(per_token(parts, item, self.stream.content.aligned), 2, -1)
        y = layer_norm(hidden, None, None, 1e-6) if self.norm is None else rms_norm(hidden, self.norm[...], 1e-6)
        y = y * (1 + scale) + shift
        return dense(y, self.kernel[...], self.bias[...]).astype(jnp.float32)


class ModulatedRMSHead(ModulatedHead):
    """The same behind an RMSNorm with a scale (Show-o2)."""

    normed = True


class RowMajorHead(ModulatedRMSHead):
    """As Show-o2 published it: token k predicts not its patch, but the k-th P * P pixels of the item in raster order.
    What leaves it is in patches, as of every other head. Items of one fixed grid only."""

    def __call__(self, hidden: Hidden, skips: OfItems) -> Patches:
        stream, p = self.stream, self.stream.patch
        out = super().__call__(hidden, skips)
        b, n, e = out.shape
        items = out.reshape(b, -1, stream.tokens_per_item, e)
        first, patches = items[:, :, : stream.content.lead], items[:, :, stream.content.lead :]
        height, width = stream.grid
        pixels = patches.reshape(b, -1, height // p, p, width // p, p, e // p**2)
        patches = pixels.transpose(0, 1, 2, 4, 3, 5, 6).reshape(patches.shape)
        return jnp.concatenate([first, patches], 2).reshape(b, n, e)


class NoHead(Head):
    """Of a stream that only conditions others."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        del stream, width, rngs  # it has no weights

    def __call__(self, hidden: Hidden, skips) -> Hidden:
        return hidden


class UNetHead(Head):
    """The up half of the U-Net, with the down half's skips round the trunk: patches [B, N, E], float32."""

    coder = True
    half, sizes = UNetUp, UNetConfig

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.stream, sizes = stream, self.sizes(width=stream.coder_width)
        self.up = self.half(stream.channels, stream.patch, width, rngs, config=sizes)

    def __call__(self, hidden: Hidden, skips) -> Patches:
        latents = self.up(split_items(hidden, self.stream), *skips)
        patches = patches_of(latents, self.stream.patch)
        return join_items(patches, self.stream, hidden.shape[0]).astype(jnp.float32)


class ConvNeXtHead(UNetHead):
    """The last half of JanusFlow's coder, in the same place."""

    half, sizes = ConvNeXtUp, ConvNeXtConfig


HEADS = {
    "token": TokenHead, "mlp": PerceptronHead, "linear": LinearHead, "unet": UNetHead, "convnext": ConvNeXtHead,
    "adaln": ModulatedHead, "adaln_rms": ModulatedRMSHead, "row_major": RowMajorHead, "none": NoHead,
}  # fmt: skip
