"""The model: per stream an embed and a head, and between them one trunk."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.errors import UsageError, nearest
from transfusion.masks import Metadata
from transfusion.model.block import per_token
from transfusion.model.config import TransformerConfig
from transfusion.model.embeds import EMBEDS, ItemCondition, LearnedTable, TimeEmbedding, sincos_table
from transfusion.model.heads import HEADS, TiedHead
from transfusion.model.parameters import Template
from transfusion.model.transformer import Condition, KeyValues, Trunk
from transfusion.sequence import SequenceSpec, Stream

# Which fields of a stream are rows of which table.
TABLES = {
    "embed": EMBEDS,
    "head": HEADS,
    "time": ("none", "added", "coder", "adaln", "token", "token_before"),
    "table": ("none", "sincos", "sincos_xy", "learned", "centred"),
}
SINCOS_AXES = {"sincos": (0, 1), "sincos_xy": (1, 0)}


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
      label: int32 [B, M] of class-conditional streams.
      pooled: float32 [B, M, C] of streams with a pooled vector.
    """

    content: jax.Array
    time: jax.Array | None
    position: jax.Array
    item: jax.Array
    place: jax.Array | None
    metadata: Metadata
    label: jax.Array | None = None
    pooled: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """A stream's outputs of the trunk [B, N, D], and what its head needs besides them."""

    hidden: jax.Array
    skips: Any


class StreamParts(nnx.Module):
    """Embed, head and time embedding of one stream."""

    def __init__(self, name: str, stream: Stream, config: TransformerConfig, rngs: nnx.Rngs):
        for field, known in TABLES.items():
            value = getattr(stream, field)
            if value not in known:
                raise UsageError(f"streams: {field} {value!r} is none of {', '.join(known)}{nearest(value, known)}")
        if (stream.embed == "unet") != (stream.head == "unet") or (stream.embed == "unet") != (stream.time == "coder"):
            raise UsageError("streams: embed 'unet', head 'unet' and time 'coder' go together")
        width = config.width
        self.embed = EMBEDS[stream.embed](stream, config, name, rngs)
        if not stream.tied:
            self.head = HEADS[stream.head](stream, width, rngs)
        if stream.time == "adaln":
            self.condition = ItemCondition(stream, width, config.layers, rngs)
        elif stream.time != "none":
            self.time = TimeEmbedding(width, rngs, stream.time_embedding)
            if stream.head == "adaln":
                self.head_time = TimeEmbedding(width, rngs, stream.time_embedding)
        if stream.table in ("learned", "centred"):
            self.table = LearnedTable(stream, width, rngs)


class UnifiedModel(nnx.Module):
    """Streams over one trunk. `encode` runs some or all streams; objectives and samplers apply the heads."""

    def __init__(self, config: TransformerConfig, spec: SequenceSpec, rngs: nnx.Rngs):
        if config.rope_axes != spec.axes:
            raise UsageError(f"model.rope_axes {config.rope_axes} differs from the sequence's {spec.axes} axes")
        self.streams = dict(spec.streams)
        self.may: np.ndarray | None = None if spec.visibility is None else _Static(spec.visibility)
        self.width = config.width
        modulated = tuple(name for name, s in spec.streams.items() if s.time == "adaln" or s.condition)
        self.trunk = Trunk(config, {name: s.expert for name, s in spec.streams.items()}, rngs, modulated)
        own = {name: s for name, s in spec.streams.items() if not s.parts}
        self.parts = nnx.Dict({name: StreamParts(name, s, config, rngs) for name, s in own.items()})

    def part(self, name: str) -> StreamParts:
        """The parts that a stream uses."""
        return self.parts[self.streams[name].parts or name]

    def embed(self, name: str, inputs: Inputs, vector: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """Tokens [B, N, D] of one stream and what its head needs besides them; `vector` modulates the stream."""
        part, stream = self.part(name), self.streams[name]
        time = part.time(inputs.time) if hasattr(part, "time") else None
        added = time if stream.time in ("added", "coder") else None
        tokens, skips = part.embed(inputs, added)
        if stream.table in SINCOS_AXES:
            tokens += sincos_table(inputs.place, self.width, SINCOS_AXES[stream.table])
        elif stream.table != "none":
            tokens += part.table(inputs.place)
        if stream.time_tokens:
            tokens = jnp.where(inputs.place[..., :1] < 0, per_token(time, inputs.item, stream.aligned), tokens)
        if stream.head == "adaln":
            if hasattr(part, "head_time"):
                vector = part.head_time(inputs.time)
            skips = (vector[0] if vector.ndim == 4 else vector, inputs.item)
        return tokens, skips

    def conditions(self, inputs: Mapping[str, Inputs]) -> dict[str, Condition]:
        """What modulates the streams at hand, by their own items or another stream's."""
        vectors = {
            name: self.part(name).condition(part.time, part.label, part.pooled)
            for name, part in inputs.items()
            if self.streams[name].time == "adaln"
        }
        sources = {name: self.streams[name].condition or name for name in inputs}
        return {
            name: Condition(vectors[source], inputs[name].item, source == name and self.streams[name].aligned)
            for name, source in sources.items()
            if source in vectors
        }

    def encode(
        self, inputs: Mapping[str, Inputs], *, cache: KeyValues | None = None, keep: bool = False
    ) -> tuple[dict[str, Encoded], KeyValues | None]:
        """Runs tokens of some streams through the trunk; see `Trunk.__call__` for `cache` and `keep`."""
        conditions = self.conditions(inputs)
        vectors = {name: condition.vector for name, condition in conditions.items()}
        embedded = {name: self.embed(name, part, vectors.get(name)) for name, part in inputs.items()}
        hidden, kept = self.trunk(
            {name: tokens for name, (tokens, _) in embedded.items()},
            {name: part.position for name, part in inputs.items()},
            {name: part.metadata for name, part in inputs.items()},
            condition=conditions,
            cache=cache,
            may=None if self.may is None else self.may.value,
            keep=keep,
        )
        return {name: Encoded(hidden[name], embedded[name][1]) for name in inputs}, kept

    def head_of(self, stream: str) -> Any:
        """The head of a stream, a function of (hidden, skips)."""
        part = self.part(stream)
        return TiedHead(part.embed) if self.streams[stream].tied else part.head

    def head(self, stream: str, encoded: Encoded) -> jax.Array:
        """Logits [B, N, V], or predicted patches [B, N, E]; float32."""
        return self.head_of(stream)(encoded.hidden, encoded.skips)


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
