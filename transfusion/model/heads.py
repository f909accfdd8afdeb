"""A head turns the trunk's outputs into the predictions of a stream; `HEADS` names one class per way to do so.

Every head is made as `HEAD(stream, width, rngs)` and called as `head(hidden, skips)`.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.errors import check
from transfusion.model.block import ACTIVATIONS, dense, layer_norm, per_token, rms_norm, unit
from transfusion.model.convnext import ConvNeXtConfig, ConvNeXtUp
from transfusion.model.parameters import constant, fan_in, ones, param, zeros
from transfusion.model.token_flow import TokenFlow
from transfusion.model.unet import UNetConfig, UNetUp
from transfusion.model.vit import patches_of
from transfusion.sequence import Stream
from transfusion.sequence.arrays import Array, Float, Int
from transfusion.sequence.batch import join_items, split_items

Hidden = Float[Array, "B N D"]
Patches = Float[Array, "B N E"]
OfItems = tuple[Float[Array, "B M D"], Int[Array, "B N"]]  # a vector per item, and which item each token belongs to


class Head(nnx.Module):
    """The base of all heads; the rest of the library asks these attributes instead of the class.

    Attributes:
      modulated: whether the head reads a vector per item besides the trunk's outputs.
      coder: whether the head is the last half of a coder. The embed of the same name is the other half, and skips lead
        from the one to the other round the trunk.
    """

    modulated: ClassVar[bool] = False
    coder: ClassVar[bool] = False


class TokenHead(Head):
    """A linear map to logits [B, N, V], float32.

    The objective reads `factors` instead, so that it can compute logits chunk by chunk.
    """

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (width, stream.vocabulary), ("embed", "vocab"), fan_in(width))

    def factors(self, hidden: Hidden) -> tuple[Hidden, Float[Array, "D V"]]:
        """The two factors [B, N, D] and [D, V] whose product is the logits."""
        return hidden, self.kernel[...]

    def __call__(self, hidden: Hidden, skips) -> Float[Array, "B N V"]:
        return dense(*self.factors(hidden)).astype(jnp.float32)


class PerceptronHead(TokenHead):
    """Logits behind one hidden layer, like the head of Janus' codes (arXiv 2410.13848, section 3.1)."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.activation = stream.connector.activation
        self.hidden = param(rngs, (width, width), (None, "embed"), fan_in(width))
        self.hidden_bias = param(rngs, (width,), (None,), zeros)
        super().__init__(stream, width, rngs)
        self.bias = param(rngs, (stream.vocabulary,), ("vocab",), zeros)

    def factors(self, hidden: Hidden) -> tuple[Float[Array, "B N D+1"], Float[Array, "D+1 V"]]:
        """The two factors [B, N, D + 1] and [D + 1, V]: the bias is one more row, and the vectors end in a 1."""
        y = ACTIVATIONS[self.activation](dense(hidden, self.hidden[...], self.hidden_bias[...]))
        y = jnp.concatenate([y, jnp.ones_like(y[..., :1])], -1)
        return y, jnp.concatenate([self.kernel[...], self.bias[...][None]], 0)


class LinearHead(Head):
    """A linear map to patches [B, N, E], float32."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (width, stream.predicted), ("embed", "patch"), fan_in(width))
        self.bias = param(rngs, (stream.predicted,), (None,), zeros)

    def __call__(self, hidden: Hidden, skips) -> Patches:
        y = dense(hidden, self.kernel[...]).astype(jnp.float32)
        return y + broadcast_to_rank(self.bias[...], y.ndim)


class TiedHead:
    """Logits [B, N, V] from the table of a `TokenEmbed`, so that embed and head share their weights."""

    def __init__(self, embed: nnx.Module):
        self.embed = embed

    def factors(self, hidden: Hidden) -> tuple[Hidden, Float[Array, "D V"]]:
        return hidden, self.embed.table[...].T

    def __call__(self, hidden: Hidden, skips) -> Float[Array, "B N V"]:
        return dense(*self.factors(hidden)).astype(jnp.float32)


class ModulatedHead(Head):
    """DiT's last layer (section 3.2): a LayerNorm without weights, the item's shift and scale, and a linear map."""

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
        """`skips` holds the vectors [B, M, D] of the items, and the item [B, N] of each token."""
        vector, item = skips
        parts = dense(jax.nn.silu(vector), self.modulation[...], self.modulation_bias[...])
        shift, scale = jnp.split(per_token(parts, item, self.stream.content.aligned), 2, -1)
        y = layer_norm(hidden, None, None, 1e-6) if self.norm is None else rms_norm(hidden, self.norm[...], 1e-6)
        y = y * (1 + scale) + shift
        return dense(y, self.kernel[...], self.bias[...]).astype(jnp.float32)


class ModulatedRMSHead(ModulatedHead):
    """A `ModulatedHead` whose norm is an RMSNorm with a scale (Show-o2)."""

    normed = True


class RowMajorHead(ModulatedRMSHead):
    """The head of Show-o2's published weights, where token k predicts the k-th P * P pixels in raster order.

    With other heads a token predicts its own patch. This head rearranges pixels, so that it returns patches, too.
    All items must have one fixed grid.
    """

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
    """Returns the trunk's outputs as they are, for a stream that predicts nothing and only conditions others."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        del stream, width, rngs  # it has no weights

    def __call__(self, hidden: Hidden, skips) -> Hidden:
        return hidden


class UNetHead(Head):
    """The up half of the U-Net, which also reads the skips of the down half: gives patches [B, N, E], float32."""

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
    """The last half of JanusFlow's ConvNeXt coder, used as `UNetHead` uses the U-Net's; see `ConvNeXtUp`."""

    half, sizes = ConvNeXtUp, ConvNeXtConfig


class TokenFlowHead(TokenFlow, Head):
    """Denoises each token by itself, see `transfusion.model.token_flow`."""


# Objective -> the factor of the cosines and what is added to them, at first (CLIP, section 2.5; SigLIP, section 3.2).
FIRST_SCALES = {"clip": (1 / 0.07, 0.0), "siglip": (10.0, -10.0)}


class PairHead(Head):
    """Maps an item's vector and that of its text to one space, and compares them there, see `objectives.contrastive`.

    The factor of the cosines is learned, and is at most 100; with 'siglip' so is what is added to them.
    """

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        check("streams: head 'pair' needs an objective that compares; objective", stream.objective, FIRST_SCALES)
        factor, added = FIRST_SCALES[stream.objective]
        self.kernel = param(rngs, (width, width), (None, "embed"), fan_in(width))
        self.text = param(rngs, (width, width), (None, "embed"), fan_in(width))
        self.factor = param(rngs, (1,), (None,), constant(math.log(factor)))
        self.added = param(rngs, (1,), (None,), constant(added)) if added else None

    def vectors(
        self, items: Float[Array, "B M D"], texts: Float[Array, "B M D"]
    ) -> tuple[Float[Array, "B M D"], Float[Array, "B M D"]]:
        """The vectors of length 1 of items and of their texts."""
        return unit(dense(items, self.kernel[...])), unit(dense(texts, self.text[...]))

    def logits(self, items: Float[Array, "P D"], texts: Float[Array, "P D"]) -> Float[Array, "P P"]:
        """How well each item goes with each text."""
        cosines = jnp.einsum("pd,qd->pq", items, texts, preferred_element_type=jnp.float32)
        scaled = cosines * jnp.minimum(jnp.exp(self.factor[...]), 100.0)[None]
        return scaled if self.added is None else scaled + self.added[...][None]


HEADS = {
    "token": TokenHead, "mlp": PerceptronHead, "linear": LinearHead, "unet": UNetHead, "convnext": ConvNeXtHead,
    "adaln": ModulatedHead, "adaln_rms": ModulatedRMSHead, "row_major": RowMajorHead, "none": NoHead,
    "pair": PairHead, "token_flow": TokenFlowHead,
}  # fmt: skip
