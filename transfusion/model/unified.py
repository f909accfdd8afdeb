"""The model: per stream an embed and a head, and between them one trunk."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from transfusion.errors import UsageError, nearest
from transfusion.masks import Metadata
from transfusion.model.embeds import EMBEDS, TimeEmbedding, sincos_table
from transfusion.model.heads import HEADS
from transfusion.model.parameters import Template
from transfusion.model.transformer import KeyValues, TransformerConfig, Trunk
from transfusion.sequence import SequenceSpec, Stream

TIMES = ("none", "added", "coder")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one stream's tokens bring into a forward pass.

    Attributes:
      content: ids int32 [B, N], or (noised) patches float32 [B, N, E].
      time: noise level of each item float32 [B, M]; None for discrete streams.
      position: int32 [B, N, A].
      item: int32 [B, N].
      place: int32 [B, N, 2] or None.
      metadata: [B, N].
    """

    content: jax.Array
    time: jax.Array | None
    position: jax.Array
    item: jax.Array
    place: jax.Array | None
    metadata: Metadata


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """A stream's outputs of the trunk [B, N, D], and what its head needs besides them."""

    hidden: jax.Array
    skips: Any


class StreamParts(nnx.Module):
    """Embed, head and time embedding of one stream."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        for field, known in (("embed", EMBEDS), ("head", HEADS), ("time", TIMES)):
            value = getattr(stream, field)
            if value not in known:
                raise UsageError(f"streams: {field} {value!r} is none of {', '.join(known)}{nearest(value, known)}")
        if (stream.embed == "unet") != (stream.head == "unet") or (stream.embed == "unet") != (stream.time == "coder"):
            raise UsageError("streams: embed 'unet', head 'unet' and time 'coder' go together")
        self.embed = EMBEDS[stream.embed](stream, width, rngs)
        self.head = HEADS[stream.head](stream, width, rngs)
        if stream.time != "none":
            self.time = TimeEmbedding(width, rngs)


class UnifiedModel(nnx.Module):
    """Streams over one trunk. `encode` runs some or all streams; objectives and samplers apply the heads."""

    def __init__(self, config: TransformerConfig, spec: SequenceSpec, rngs: nnx.Rngs):
        if config.rope_axes != spec.axes:
            raise UsageError(f"model.rope_axes {config.rope_axes} differs from the sequence's {spec.axes} axes")
        self.streams = dict(spec.streams)
        self.may: np.ndarray | None = None if spec.visibility is None else _Static(spec.visibility)
        self.width = config.width
        self.trunk = Trunk(config, {name: s.expert for name, s in spec.streams.items()}, rngs)
        self.parts = nnx.Dict({name: StreamParts(s, config.width, rngs) for name, s in spec.streams.items()})

    def embed(self, stream: str, inputs: Inputs) -> tuple[jax.Array, Any]:
        """Tokens [B, N, D] and skips of one stream."""
        part = self.parts[stream]
        condition = None if self.streams[stream].time == "none" else part.time(inputs.time)
        tokens, skips = part.embed(inputs.content, condition, inputs.item, inputs.place)
        if self.streams[stream].table == "sincos":
            tokens += sincos_table(inputs.place, self.width)
        return tokens, skips

    def encode(
        self, inputs: Mapping[str, Inputs], *, cache: KeyValues | None = None, keep: bool = False
    ) -> tuple[dict[str, Encoded], KeyValues | None]:
        """Runs tokens of some streams through the trunk; see `Trunk.__call__` for `cache` and `keep`."""
        embedded = {name: self.embed(name, part) for name, part in inputs.items()}
        hidden, kept = self.trunk(
            {name: tokens for name, (tokens, _) in embedded.items()},
            {name: part.position for name, part in inputs.items()},
            {name: part.metadata for name, part in inputs.items()},
            cache=cache,
            may=None if self.may is None else self.may.value,
            keep=keep,
        )
        return {name: Encoded(hidden[name], embedded[name][1]) for name in inputs}, kept

    def head(self, stream: str, encoded: Encoded) -> jax.Array:
        """Logits [B, N, V], or predicted patches [B, N, E]; float32."""
        return self.parts[stream].head(encoded.hidden, encoded.skips)


@dataclasses.dataclass(frozen=True, eq=False)
class _Static:
    """Keeps a numpy table out of the module's parameters."""

    value: np.ndarray


def model_template(config: TransformerConfig, spec: SequenceSpec) -> Template:
    """The model without its arrays."""
    return Template(lambda rngs: UnifiedModel(config, spec, rngs))


def parameter_count(shapes: Any) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
