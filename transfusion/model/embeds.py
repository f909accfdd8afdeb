"""An embed turns the content of a stream into tokens of the trunk; `EMBEDS` names one class per way to do so.

Every embed is made as `EMBED(stream, config, name, rngs)` and called as `embed(inputs, condition) -> (tokens [B, N, D],
skips)` with a `transfusion.model.inputs.Inputs`. `skips` goes round the trunk to the head of the same stream, and is
None for most. `condition` [B, M, D] embeds the noise levels: it is computed once per item and never per token.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.errors import UsageError, check
from transfusion.model.block import ACTIVATIONS, dense, per_token, rms_norm
from transfusion.model.config import TransformerConfig
from transfusion.model.convnext import ConvNeXtConfig, ConvNeXtDown
from transfusion.model.multiscale import MultiScaleQuantizer
from transfusion.model.parameters import fan_in, normal, ones, param, zeros
from transfusion.model.quantizers import QuantizerConfig
from transfusion.model.resample import Resampler, Selection
from transfusion.model.unet import UNetConfig, UNetDown
from transfusion.model.vit import ViT
from transfusion.sequence import ConnectorConfig, Stream
from transfusion.sequence.batch import join_items, split_items
from transfusion.sequence.patches import unpatchify
from transfusion.sharding import constrain


class Embed(nnx.Module):
    """The base of all embeds; the rest of the library asks these attributes instead of the class.

    Attributes:
      looked_up: names of parameters whose rows are looked up; they multiply nothing and so cost no FLOPs.
      coder: whether the embed is the first half of a coder. The head of the same name is the other half, and skips lead
        from the one to the other round the trunk.
      of_images: whether the embed can read images only.
    """

    looked_up: ClassVar[tuple[str, ...]] = ()
    coder: ClassVar[bool] = False
    of_images: ClassVar[bool] = False


class TokenEmbed(Embed):
    """Looks ids [B, N] up in a table with a vector of the trunk's width per id."""

    looked_up = ("table",)

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        width = config.width
        self.table = param(rngs, (stream.vocabulary, width), ("vocab", "embed"), fan_in(width))

    def __call__(self, inputs, condition):
        # Each device looks up its share of the width for all rows; then devices exchange widths for rows.
        return constrain(self.table[...][inputs.content], "replicas", None, "embed"), None


class ScaleEmbed(Embed):
    """Shows the trunk the coarser scales of an image's codes at the places where it must predict the next scale.

    As in VAR (arXiv 2404.02905, section 3.2), the quantizer turns the codes of all earlier scales into features, which
    are summed, averaged to the size of the next scale and mapped to the trunk's width. The first scale reads a learned
    start. A learned vector per scale and one per token are added.

    The quantizer is the codec's: copy it from the codec's run (`init.copy`), and freeze it (`optim.groups`).
    """

    looked_up = ("quantizer", "level", "token")

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        if not stream.scales or stream.channels < 1:
            raise UsageError(f"streams.{name}: embed 'scales' needs `scales` of codes, with `channels` numbers each")
        width, channels = config.width, stream.channels
        self.scales = tuple(stream.scales)
        codebook = QuantizerConfig(codes=stream.vocabulary, codebook="gradient", scales=self.scales)
        self.quantizer = MultiScaleQuantizer(codebook, channels, rngs=rngs)
        self.kernel = param(rngs, (channels, width), (None, "embed"), fan_in(channels))
        self.bias = param(rngs, (width,), (None,), zeros)
        self.start = param(rngs, (width,), ("embed",), fan_in(width))
        self.level = param(rngs, (len(self.scales), width), (None, "embed"), normal(0.02))
        self.token = param(rngs, (stream.tokens_per_item, width), (None, "embed"), normal(0.02))

    def __call__(self, inputs, condition):
        sides = np.array(self.scales)
        sizes, n = sides**2, int(np.sum(sides**2))
        features = self.quantizer.features_of_scales(inputs.content.reshape(-1, n))
        tokens = dense(features, self.kernel[...], self.bias[...])
        start = jnp.broadcast_to(self.start[...], (len(tokens), sizes[0], tokens.shape[-1]))
        level = jnp.repeat(self.level[...], sizes, axis=0, total_repeat_length=n)
        tokens = jnp.concatenate([start, tokens], 1) + level[None] + self.token[...][None]
        scale, y, x = jnp.moveaxis(inputs.place, -1, 0)
        at = jnp.asarray(np.cumsum(sizes) - sizes)[scale] + y * jnp.asarray(sides)[scale] + x
        tokens = tokens.reshape(len(inputs.content), -1, tokens.shape[-1])
        return jnp.take_along_axis(tokens, (inputs.item * n + at)[..., None], axis=1), None


class QueryEmbed(Embed):
    """Learned vectors that ask a language model for an image: one per place, the same for all items.

    They are those of MetaQueries (arXiv 2504.06256, section 3).
    """

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        if stream.source != "none" or not stream.content.aligned:
            raise UsageError(f"streams.{name}: embed 'queries' needs source 'none', and a grid: how many there are")
        self.columns = stream.grid[1] // stream.patch
        self.table = param(rngs, (stream.tokens_per_item, config.width), (None, "embed"), fan_in(config.width))

    def __call__(self, inputs, condition):
        return self.table[...][inputs.place[..., 0] * self.columns + inputs.place[..., 1]], None


class LinearPatch(Embed):
    """Maps patches [B, N, E] linearly, and adds the embedded noise level if there is one (Transfusion, section 3.1)."""

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        width = config.width
        self.stream = stream
        self.kernel = param(rngs, (stream.features, width), ("patch", "embed"), fan_in(stream.features))
        self.bias = param(rngs, (width,), (None,), zeros)

    def __call__(self, inputs, condition):
        tokens = dense(inputs.content, self.kernel[...])
        tokens += broadcast_to_rank(self.bias[...], tokens.ndim)
        if condition is not None:
            tokens += per_token(condition, inputs.item, self.stream.content.aligned)
        return tokens, None


class NarrowPatch(LinearPatch):
    """Maps patches [B, N, E] to `coder_width` numbers, and these to the trunk (JiT, arXiv 2511.13720, section 4.2).

    Noise of as many numbers as the trunk is wide would leave it no room for place, time and what is read."""

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        narrow, width = stream.coder_width, config.width
        self.stream = stream
        self.narrow = param(rngs, (stream.features, narrow), ("patch", None), normal(0.25 * stream.features**-0.5))
        self.kernel = param(rngs, (narrow, width), (None, "embed"), fan_in(narrow))
        self.bias = param(rngs, (width,), (None,), zeros)

    def __call__(self, inputs, condition):
        return super().__call__(dataclasses.replace(inputs, content=dense(inputs.content, self.narrow[...])), condition)


class UNetPatch(Embed):
    """The down half of Transfusion's U-Net (section 3.1), whose blocks read the noise level.

    All items must have one fixed grid.
    """

    coder, of_images = True, True
    half, sizes = UNetDown, UNetConfig

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        self.stream, sizes = stream, self.sizes(width=stream.coder_width)
        self.down = self.half(stream.channels, stream.patch, config.width, rngs, config=sizes)

    def __call__(self, inputs, condition):
        stream, rows = self.stream, inputs.content.shape[0]
        latents = unpatchify(split_items(inputs.content, stream), stream.grid, stream.patch)
        condition = condition.reshape(-1, condition.shape[-1])
        tokens, skips = self.down(latents, condition)
        return join_items(tokens, stream, rows), (skips, condition)


class ConvNeXtPatch(UNetPatch):
    """The first half of JanusFlow's ConvNeXt coder, used as `UNetPatch` uses the U-Net's; see `ConvNeXtDown`."""

    of_images = False
    half, sizes = ConvNeXtDown, ConvNeXtConfig


class Connector(nnx.Module):
    """Maps vectors to the trunk's width with dense layers that have biases, and an activation between them.

    LLaVA-1.5 (arXiv 2310.03744) has two layers with a GELU.
    """

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs, config: ConnectorConfig):
        check("streams: connector.activation", config.activation, ACTIVATIONS)
        if config.depth < 1:
            raise UsageError(f"streams: connector.depth must be positive, not {config.depth}")
        self.activation, between = config.activation, config.depth - 2
        deep, deeper = config.depth > 1, between > 0
        self.hidden = param(rngs, (inputs, width), (None, "embed"), fan_in(inputs)) if deep else None
        self.hidden_bias = param(rngs, (width,), (None,), zeros) if deep else None
        axes = (None, "embed", None)
        self.between = param(rngs, (between, width, width), axes, fan_in(width)) if deeper else None
        self.between_bias = param(rngs, (between, width), (None, None), zeros) if deeper else None
        inputs = width if config.depth > 1 else inputs
        self.out = param(rngs, (inputs, width), ("embed", None), fan_in(inputs))
        self.out_bias = param(rngs, (width,), (None,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        if self.hidden is not None:
            x = act(dense(x, self.hidden[...], self.hidden_bias[...]))
        if self.between is not None:
            for kernel, bias in zip(self.between[...], self.between_bias[...], strict=True):
                x = act(dense(x, kernel, bias))
        return dense(x, self.out[...], self.out_bias[...])


GELU = ConnectorConfig(activation="gelu")


class CodeEmbed(Embed):
    """Looks ids [B, N] up in a table of short vectors [V, C], which a connector maps to the trunk's width.

    This is the generation adaptor of Janus (arXiv 2410.13848, section 3.1).
    """

    looked_up = ("table",)

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        if stream.channels < 1:
            raise UsageError(f"streams.{name}: embed 'codes' needs `channels`, the size of a code's vector")
        self.table = param(rngs, (stream.vocabulary, stream.channels), ("vocab", None), fan_in(stream.channels))
        self.connector = Connector(stream.channels, config.width, rngs, stream.connector)

    def __call__(self, inputs, condition):
        return self.connector(self.table[...][inputs.content]), None


class TowerEmbed(Embed):
    """Reads the pixels of each image with a Vision Transformer and a connector, to understand it (Janus, BAGEL)."""

    of_images = True

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        if name not in config.towers:
            raise UsageError(f"streams.{name}: embed 'vit' needs model.towers.{name}")
        tower = config.towers[name]
        if (tower.patch, tower.channels) != (stream.patch, stream.channels) or tower.pool:
            raise UsageError(f"model.towers.{name}: patch and channels must be the stream's, and pool false")
        self.tower = ViT(tower, rngs=rngs)
        self.connector = Connector(tower.width, config.width, rngs, stream.connector)

    def __call__(self, inputs, condition):
        return self.connector(_tower_features(self.tower, inputs)), None


class Bridge(nnx.Module):
    """Maps tokens from the width of one trunk to that of the next; see `transfusion.model.config.Stage`."""

    def __init__(self, kind: str, inputs: int, width: int, rngs: nnx.Rngs):
        linear = kind != "mlp"
        self.layers = None if linear else Connector(inputs, width, rngs, GELU)
        self.kernel = param(rngs, (inputs, width), (None, "embed"), fan_in(inputs)) if linear else None
        self.bias = param(rngs, (width,), (None,), zeros) if linear else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return dense(x, self.kernel[...], self.bias[...]) if self.layers is None else self.layers(x)


class DualEmbed(Embed):
    """Fuses two views of the same latents: a tower's for meaning, a linear map's for pixels (Show-o2, section 3.1)."""

    of_images = True

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        if name not in config.towers:
            raise UsageError(f"streams.{name}: embed 'dual' needs model.towers.{name}")
        tower, width = config.towers[name], config.width
        if (tower.patch, tower.channels) != (stream.patch, stream.channels) or tower.pool:
            raise UsageError(f"model.towers.{name}: patch and channels must be the stream's, and pool false")
        self.tower = ViT(tower, rngs=rngs)
        self.kernel = param(rngs, (stream.features, width), ("patch", "embed"), fan_in(stream.features))
        self.bias = param(rngs, (width,), (None,), zeros)
        self.norm = param(rngs, (tower.width + width,), (None,), ones)
        self.connector = Connector(tower.width + width, width, rngs, GELU)

    def __call__(self, inputs, condition):
        semantic = _tower_features(self.tower, inputs)
        pixels = dense(inputs.content, self.kernel[...], self.bias[...])
        return self.connector(rms_norm(jnp.concatenate([semantic, pixels], -1), self.norm[...], 1e-6)), None


class ResamplerEmbed(Resampler, Embed):
    """Learned queries that look at a tower's tokens, see `transfusion.model.resample`."""

    looked_up = ("queries",)
    of_images = True


class SelectEmbed(Selection, Embed):
    """The best of a tower's tokens and of linear patches, see `transfusion.model.resample`."""

    looked_up = ("where",)
    of_images = True


def _tower_features(tower: ViT, inputs) -> jax.Array:
    """The features [B, N, W] that a tower gives the patches of a stream; each patch sees those of its own item only."""
    document, item, place = inputs.metadata.document, inputs.item, inputs.place
    patch = (document != 0) & (place[..., 0] >= 0)  # false for padding and time tokens
    same = (document[:, :, None] == document[:, None]) & (item[:, :, None] == item[:, None])
    return tower.packed(inputs.content, jnp.maximum(place, 0), same & patch[:, None] & patch[:, :, None]).last


EMBEDS = {
    "token": TokenEmbed, "linear": LinearPatch, "narrow": NarrowPatch, "unet": UNetPatch, "convnext": ConvNeXtPatch,
    "vit": TowerEmbed, "dual": DualEmbed, "queries": QueryEmbed, "codes": CodeEmbed, "scales": ScaleEmbed,
    "resampler": ResamplerEmbed, "select": SelectEmbed,
}  # fmt: skip
