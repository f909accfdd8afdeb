"""The model has an embed and a head for each stream, and between them one trunk or several in a row."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.errors import UsageError, check, nearest
from transfusion.model.attention import FindBackend, backend_of
from transfusion.model.cache import KeyValues, Stacks, write_metadata
from transfusion.model.config import TransformerConfig
from transfusion.model.embeds import Bridge
from transfusion.model.heads import TiedHead
from transfusion.model.inputs import Encoded, Inputs
from transfusion.model.modulation import Condition
from transfusion.model.parameters import Template
from transfusion.model.parts import Entering, StreamParts, entry
from transfusion.model.sublayers import Sublayer
from transfusion.model.transformer import FIRST, Loads, Trunk, TrunkInputs
from transfusion.sequence import SequenceSpec, Stream
from transfusion.sequence.masks import Metadata, causal
from transfusion.sequence.times import TIMES


class UnifiedModel(nnx.Module):
    """The model: all streams over one trunk, or over several, one behind the other.

    `encode` runs some or all streams; objectives and samplers apply the heads."""

    def __init__(
        self,
        config: TransformerConfig,
        spec: SequenceSpec,
        rngs: nnx.Rngs,
        find_backend: FindBackend = backend_of,
        more: tuple[Sublayer, ...] = (),
    ):
        self.streams = dict(spec.streams)
        self.may: np.ndarray | None = None if spec.visibility is None else _Static(spec.visibility)
        configs = {FIRST: config} | {name: stage.trunk for name, stage in config.stages.items()}
        for where, trunk in configs.items():
            if trunk.rope_axes != spec.axes:
                raise UsageError(f"model.rope_axes {trunk.rope_axes} differs from the sequence's {spec.axes} axes")
            for name in (*trunk.streams, *trunk.causal, *trunk.cross):
                if name not in spec.streams:
                    raise UsageError(f"model: the trunk {where!r} has no stream {name!r}{nearest(name, spec.streams)}")
            if set(trunk.streams or spec.streams) <= set(trunk.cross):
                raise UsageError(f"model: the trunk {where!r} changes no stream, all are in `cross`")
        # The trunks that a stream passes through, in order.
        self.path = {s: tuple(n for n, c in configs.items() if s in (c.streams or spec.streams)) for s in spec.streams}
        for name, path in self.path.items():
            if not path:
                raise UsageError(f"streams.{name}: no trunk's `streams` has it")
        self.configs = configs
        trunks = {where: self._make_trunk(where, rngs, find_backend, more) for where in configs}
        self.trunk = trunks.pop(FIRST)
        own = {name: s for name, s in spec.streams.items() if not s.parts}
        self.parts = nnx.Dict({name: self._make_parts(name, s, rngs) for name, s in own.items()})
        self.entries = {name: entry(stream, self.part(name)) for name, stream in spec.streams.items()}
        self.stages = nnx.Dict(trunks)
        widths = [c.width for c in configs.values()]
        bridges = zip(config.stages.items(), widths[:-1], widths[1:], strict=True)
        self.bridges = nnx.Dict({n: Bridge(s.bridge, i, o, rngs) for (n, s), i, o in bridges if s.bridge != "none"})

    def _make_trunk(self, where: str, rngs: nnx.Rngs, find_backend: FindBackend, more: tuple[Sublayer, ...]) -> Trunk:
        inside = {name: s for name, s in self.streams.items() if where in self.path[name]}
        modulated = (n for n, s in inside.items() if self.modulator(n) and self.path[n][-1] == where)
        experts = {n: s.expert for n, s in inside.items()}
        return Trunk(self.configs[where], experts, rngs, tuple(modulated), where, find_backend, more)

    def _make_parts(self, name: str, stream: Stream, rngs: nnx.Rngs) -> StreamParts:
        path = self.path[name]
        after = stream.head_after or path[-1]
        check(f"streams.{name}.head_after", after, path)
        first, last = self.configs[path[0]], self.configs[path[-1]]
        return StreamParts(name, stream, first, last, self.configs[after].width, rngs)

    def part(self, name: str) -> StreamParts:
        """The parts that a stream uses, which may belong to another stream."""
        return self.parts[self.streams[name].parts or name]

    def embed(self, name: str, inputs: Inputs, vector: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """Embeds one stream: its tokens [B, N, D], and what its head needs besides them. `vector` modulates it."""
        part, entering = self.part(name), Entering(vector)
        for step in self.entries[name]:
            entering = step(part, inputs, entering)
        return entering.tokens, entering.skips

    def modulator(self, name: str) -> str:
        """The name of the stream whose items modulate a stream's tokens: another one, itself, or '' for none."""
        stream = self.streams[name]
        return stream.released.condition or (name if TIMES[stream.time].modulates else "")

    def conditions(self, inputs: Mapping[str, Inputs]) -> dict[str, Condition]:
        """Makes the conditions that modulate the given streams, from their own items or another stream's."""
        vectors = {
            name: self.part(name).condition(part.time, part.label, part.pooled, part.ahead)
            for name, part in inputs.items()
            if TIMES[self.streams[name].time].modulates
        }
        sources = {name: self.modulator(name) for name in inputs}
        return {
            name: Condition(vectors[source], inputs[name].item, source == name and self.streams[name].content.aligned)
            for name, source in sources.items()
            if source in vectors
        }

    def encode(self, inputs: Mapping[str, Inputs], cache: KeyValues | None = None) -> dict[str, Encoded]:
        """Runs tokens of some streams through the trunks; they see each other, and a cache."""
        return self._encode(inputs, lambda trunk, tokens: trunk(tokens, cache))

    def encode_counted(self, inputs: Mapping[str, Inputs]) -> tuple[dict[str, Encoded], dict[str, Loads]]:
        """Encodes, and also returns how many tokens the routed experts of each trunk had."""
        loads: dict[str, Loads] = {}

        def run(trunk: Trunk, tokens: TrunkInputs) -> dict[str, jax.Array]:
            outputs, loads[trunk.name] = trunk.counted(tokens)
            return outputs

        return self._encode(inputs, run), loads

    def read(
        self, inputs: Mapping[str, Inputs], cache: KeyValues | None = None
    ) -> tuple[dict[str, Encoded], KeyValues]:
        """Encodes, and also returns the keys and values of these tokens, in one order for all trunks."""
        kept: dict[str, KeyValues] = {}

        def run(trunk: Trunk, tokens: TrunkInputs) -> dict[str, jax.Array]:
            outputs, kept[trunk.name] = trunk.read(tokens, cache)
            return outputs

        encoded = self._encode(inputs, run)
        return encoded, kept[FIRST] if len(self.configs) == 1 else self._in_one_order(kept, inputs)

    def extend(
        self, inputs: Mapping[str, Inputs], cache: KeyValues, slots: Mapping[str, jax.Array]
    ) -> tuple[dict[str, Encoded], KeyValues]:
        """Encodes, and also returns the cache with these tokens written to `slots`, per stream int32 [B, N]."""
        new, at = _joined(part.metadata for part in inputs.values()), jnp.concatenate([slots[n] for n in inputs], 1)
        written = KeyValues(cache.k, cache.v, write_metadata(cache.metadata, new, at))

        def run(trunk: Trunk, tokens: TrunkInputs) -> dict[str, jax.Array]:
            nonlocal written
            outputs, written = trunk.extend(tokens, written, slots)
            return outputs

        encoded = self._encode(inputs, run)
        return encoded, written

    def _encode(
        self, inputs: Mapping[str, Inputs], run: Callable[[Trunk, TrunkInputs], dict[str, jax.Array]]
    ) -> dict[str, Encoded]:
        """Embeds the tokens, and runs every trunk that some of them enter."""
        conditions = self.conditions(inputs)
        vectors = {name: condition.vector for name, condition in conditions.items()}
        embedded = {name: self.embed(name, part, vectors.get(name)) for name, part in inputs.items()}
        hidden, read = {}, {}
        for where, config in self.configs.items():
            names = [name for name in inputs if where in self.path[name]]
            if not names:
                continue
            tokens = TrunkInputs(
                {n: self._enter(where, hidden[n]) if n in hidden else embedded[n][0] for n in names},
                {n: inputs[n].position for n in names},
                {n: causal(inputs[n].metadata) if n in config.causal else inputs[n].metadata for n in names},
                {n: c for n, c in conditions.items() if n in names and self.path[n][-1] == where},
                self._may(where),
                self._may(where, cross=True),
            )
            out = run(self._trunk(where), tokens)
            hidden |= out
            read |= {n: y for n, y in out.items() if (self.streams[n].head_after or self.path[n][-1]) == where}
        return {name: Encoded(read[name], embedded[name][1]) for name in inputs}

    def _trunk(self, where: str) -> Trunk:
        return self.trunk if where == FIRST else self.stages[where]

    def _may(self, where: str, cross: bool = False) -> np.ndarray | None:
        """Makes `may` of `transfusion.sequence.masks.see` for one trunk, for its self-attention or its `cross`.

        Tokens see those that pass through the same trunk, by one of the two attentions."""
        may = None if self.may is None else self.may.value
        inside = [where in path and cross == (s in self.configs[where].cross) for s, path in self.path.items()]
        if all(inside):
            return may
        return np.broadcast_to(inside, (len(inside),) * 2) & (True if may is None else may)

    def _in_one_order(self, kept: Mapping[str, KeyValues], inputs: Mapping[str, Inputs]) -> KeyValues:
        """Puts the keys and values of all trunks into one order, that of the tokens in `inputs`.

        A token that does not pass through a trunk has zeros there, which nothing sees.
        """
        sizes = {name: part.position.shape[1] for name, part in inputs.items()}
        metadata = _joined(part.metadata for part in inputs.values())

        def ordered(where: str, x: jax.Array) -> jax.Array:
            inside = self._trunk(where).order([name for name in inputs if where in self.path[name]])
            cuts = np.cumsum([sizes[name] for name in inside])[:-1]
            parts = dict(zip(inside, jnp.split(x, cuts, axis=2), strict=True))
            blank = x.shape[:2]
            return jnp.concatenate(
                [parts[n] if n in parts else jnp.zeros((*blank, sizes[n], x.shape[3]), x.dtype) for n in inputs], 2
            )

        def of(where: str, field: str) -> Stacks:
            if where in kept:
                return tuple(ordered(where, x) for x in getattr(kept[where], field)[where])
            # A trunk that none of these tokens passes through still needs keys and values, of its own shape.
            config, (b, s) = self.configs[where], metadata.order.shape
            return (jnp.zeros((config.layers, b * config.groups, s, config.size), config.dtype),)

        k, v = ({where: of(where, field) for where in self.configs} for field in ("k", "v"))
        return KeyValues(k, v, metadata)

    def _enter(self, where: str, x: jax.Array) -> jax.Array:
        return self.bridges[where](x) if where in self.bridges else x

    def head_of(self, stream: str) -> Any:
        """Returns a stream's head as a function of (hidden, skips)."""
        part = self.part(stream)
        return TiedHead(part.embed) if part.head is None else part.head

    def head(self, stream: str, encoded: Encoded) -> jax.Array:
        """Applies a stream's head: logits [B, N, V], or predicted patches [B, N, E]; float32."""
        return self.head_of(stream)(encoded.hidden, encoded.skips)


def _joined(parts: Iterable[Metadata]) -> Metadata:
    return jax.tree.map(lambda *fields: jnp.concatenate(fields, 1), *parts)


@dataclasses.dataclass(frozen=True, eq=False)
class _Static:
    """A wrapper that keeps a numpy table out of the module's parameters."""

    value: np.ndarray


def model_template(
    config: TransformerConfig,
    spec: SequenceSpec,
    find_backend: FindBackend = backend_of,
    more: tuple[Sublayer, ...] = (),
) -> Template:
    """Makes the template of a model, which is the model without its arrays. Each layer ends with the sublayers `more`,
    which have no parameters."""
    return Template(lambda rngs: UnifiedModel(config, spec, rngs, find_backend, more))


def parameter_count(shapes: Any) -> int:
    """Counts the parameters in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
