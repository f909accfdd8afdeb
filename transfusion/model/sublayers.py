"""The sublayers of a trunk's layer, in the order in which they add to the tokens.

`shared` prepares once per forward pass what is the same in all layers, such as a mask. `apply` then runs with one
layer's weights: it adds the sublayer's output to the tokens of every expert. It also returns the layer for the
sublayers after it, because self-attention writes the cache that cross-attention reads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.kernels.kernel import Layout
from transfusion.model.attention import Backend
from transfusion.model.block import Block
from transfusion.model.cache import CachedLayer, KeyValues, Pair, attention_over, merged
from transfusion.model.cross import CrossAttention
from transfusion.model.experts import Routed, Shared, load
from transfusion.model.modulation import Condition, modulate
from transfusion.model.parameters import bound
from transfusion.sequence.masks import Metadata
from transfusion.sharding import by_heads, cut, join

ExpertTokens = dict[str, jax.Array]
"""The tokens of each expert [B, N, D]: those of its streams, joined along the row."""
Turn = tuple[jax.Array, jax.Array] | None
"""Cosines and sines of rotary positions, see `transfusion.model.rope.turns`."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """How a forward pass treats the keys and values of its tokens.

    Attributes:
      of: a function of one layer of the cache and the keys and values of all new tokens. It returns the layer that
        attention reads and that stays in the cache, and the keys and values that the pass returns beside the cache.
      gives: whether it returns any beside the cache.
      writes: whether the new tokens are in the cache that attention reads.
    """

    of: Callable[[CachedLayer | None, Pair], tuple[CachedLayer | None, Pair | None]]
    gives: bool = False
    writes: bool = False


NOTHING = Keep(lambda cached, new: (cached, None))
NEW = Keep(lambda cached, new: (cached, merged(new)), gives=True)


def written(at: jax.Array) -> Keep:
    """Writes the new tokens to the slots `at` int32 [B, N] before attention reads the cache.

    In a loop, a cache that is read first and written afterwards would be copied.
    """
    return Keep(lambda cached, new: (cached.written(new, at), None), writes=True)


@dataclasses.dataclass(frozen=True)
class Pass:
    """The facts about its tokens that all layers of one forward pass share.

    Attributes:
      groups: per expert its streams, in the order in which they are joined.
      metadata: per stream [B, N].
      condition: the conditions of the modulated streams.
      turn: the rotary rotation of each expert's tokens.
      sizes: how many tokens each expert has.
      shares: see `transfusion.sharding.join`.
      may, may_cross: tables of self-attention and of cross-attention, see `transfusion.sequence.masks.see`.
      cache: earlier tokens that the new ones may see besides each other.
      context: metadata of a context among the tokens.
      keep: how keys and values are treated.
      backend: finds the backend of attention, see `transfusion.model.attention.backend_of`.
      size, dtype: of heads.
    """

    groups: dict[str, list[str]]
    metadata: Mapping[str, Metadata]
    condition: Mapping[str, Condition]
    turn: dict[str, Turn]
    sizes: list[int]
    shares: int
    may: np.ndarray | None
    may_cross: np.ndarray | None
    cache: KeyValues | None
    context: Metadata | None
    keep: Keep
    backend: Callable[[Layout], Backend]
    size: int

    dtype: str

    def layout(self, *experts: str, over_context: bool = False) -> Layout:
        """How the tokens of these experts lie as queries, and as keys too, or those of a context."""
        own = tuple(self.metadata[s].order.shape[1] for expert in experts for s in self.groups[expert])
        # Joined in shares, the slices of every share follow one another.
        keys = tuple(size // self.shares for size in own) * self.shares
        if over_context:
            keys = () if self.context is None else self.context.order.shape[1:]
        return Layout(own, keys, self.size, self.dtype, self.shares)

    def by_stream(self, expert: str, tokens: jax.Array) -> dict[str, jax.Array]:
        """Cuts the tokens of an expert into those of its streams."""
        streams = self.groups[expert]
        return dict(
            zip(streams, cut(tokens, [self.metadata[s].order.shape[1] for s in streams], self.shares), strict=True)
        )

    def metadata_of(self, *experts: str) -> Metadata:
        """Joins the metadata of these experts' tokens."""
        return joined(self.metadata, [s for expert in experts for s in self.groups[expert]], self.shares)


@dataclasses.dataclass(frozen=True)
class Layer:
    """The weights and values that belong to one layer.

    Attributes:
      blocks: per expert its weights.
      modulations: per expert shifts, scales and gates of every token, see `transfusion.model.modulation`; or None.
      cross, second: weights of cross-attention and of the second attention, where the layer has them.
      context: keys and values of a context among the new tokens, before they are kept.
      cached: this layer of the cache.
      start: the tokens as they entered the layer.
      kept: the new keys and values that the pass returns beside the cache.
      added: weights of the feed-forward layers that are added to the experts' own.
      loads: for each routed one of these and each stream, how many tokens each of its experts had, [E]; and what
        sublayers that observe have seen, see `transfusion.model.observe`.
    """

    blocks: dict[str, Block]
    modulations: dict[str, list[jax.Array] | None]
    cross: dict[str, jax.Array] | None
    second: dict[str, Any] | None = None
    context: Pair | None = None
    cached: CachedLayer | None = None
    start: ExpertTokens = dataclasses.field(default_factory=dict)
    kept: Pair | None = None
    added: dict[str, Any] = dataclasses.field(default_factory=dict)
    loads: dict[str, dict[str, jax.Array]] = dataclasses.field(default_factory=dict)


class Sublayer(Protocol):
    def shared(self, run: Pass) -> Any: ...

    def apply(self, x: ExpertTokens, layer: Layer, shared: Any) -> tuple[ExpertTokens, Layer]: ...


def joined(metadata: Mapping[str, Metadata], streams: list[str], shares: int = 1) -> Metadata:
    """Joins the metadata of several streams' tokens along the row."""
    return jax.tree.map(lambda *parts: join(parts, shares), *[metadata[stream] for stream in streams])


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """Self-attention: the tokens of all experts attend to each other and to the cache."""

    def shared(self, run: Pass) -> tuple[Pass, Any]:
        tokens = run.metadata_of(*run.groups)
        # Tokens that are written into the cache are read there, and not a second time as new ones.
        new = None if run.keep.writes else tokens
        return run, attention_over(tokens, new, run.cache, run.may, run.backend, run.layout(*run.groups))

    def apply(self, x: ExpertTokens, layer: Layer, shared: tuple[Pass, Any]) -> tuple[ExpertTokens, Layer]:
        run, attend = shared
        qkv = [b.queries_keys_values(x[e], run.turn[e], layer.modulations[e]) for e, b in layer.blocks.items()]
        q, k, v = by_heads(*(join(t, run.shares) for t in zip(*qkv, strict=True)))
        # The keys and values of all new tokens; a context's are last.
        new = (k, v)
        if layer.context is not None:
            new = (jnp.concatenate((k, layer.context[0]), 1), jnp.concatenate((v, layer.context[1]), 1))
        cached, kept = run.keep.of(layer.cached, new)
        outs = cut(attend(q, (k, v), cached), run.sizes, run.shares)
        x = {
            e: block.add_attention(x[e], out, layer.modulations[e])
            for (e, block), out in zip(layer.blocks.items(), outs, strict=True)
        }
        return x, dataclasses.replace(layer, cached=cached, kept=kept)


@dataclasses.dataclass(frozen=True)
class ContextAlone:
    """Replaces all sublayers where only a context passes: it stays unchanged, and its keys and values are kept."""

    def shared(self, run: Pass) -> Keep:
        return run.keep

    def apply(self, x: ExpertTokens, layer: Layer, shared: Keep) -> tuple[ExpertTokens, Layer]:
        cached, kept = shared.of(layer.cached, layer.context)
        return x, dataclasses.replace(layer, cached=cached, kept=kept)


@dataclasses.dataclass(frozen=True)
class SecondAttention:
    """The second attention, in which one expert's tokens attend to each other only (Stable Diffusion 3.5).

    Only layers with weights for it have one. It reads the tokens as they entered the layer, under the norm of their
    self-attention."""

    block: Block
    expert: str
    dtype: str

    def shared(self, run: Pass) -> tuple[Pass, Any]:
        if self.expert not in run.groups:
            return run, None
        tokens = run.metadata_of(self.expert)
        return run, attention_over(tokens, tokens, None, run.may, run.backend, run.layout(self.expert))

    def apply(self, x: ExpertTokens, layer: Layer, shared: tuple[Pass, Any]) -> tuple[ExpertTokens, Layer]:
        (run, attend), expert = shared, self.expert
        if attend is None or layer.second is None:
            return x, layer
        (stream,) = run.groups[expert]
        condition = run.condition[stream]
        weights = layer.second["modulation"][stream]
        shift, scale, gate = modulate(weights, condition.vector, condition, self.dtype)
        second = bound(self.block, layer.second["block"])
        y = layer.blocks[expert].attention_input(layer.start[expert], (shift, scale))
        q, k, v = second.heads(y, run.turn[expert])
        return x | {expert: x[expert] + gate * second.project(attend(q, (k, v), None))}, layer


@dataclasses.dataclass(frozen=True)
class OverContext:
    """Cross-attention of all tokens over a context, see `transfusion.model.cross`; does nothing without a context."""

    weights: CrossAttention

    def shared(self, run: Pass) -> tuple[Pass, Any]:
        if run.context is None and run.cache is None:
            return run, None
        tokens, new = run.metadata_of(*run.groups), None if run.keep.writes else run.context
        return run, attention_over(
            tokens, new, run.cache, run.may_cross, run.backend, run.layout(*run.groups, over_context=True)
        )

    def apply(self, x: ExpertTokens, layer: Layer, shared: tuple[Pass, Any]) -> tuple[ExpertTokens, Layer]:
        run, attend = shared
        if attend is None:
            return x, layer
        own = bound(self.weights, layer.cross)
        y = own(join(list(x.values()), run.shares), lambda q: attend(q, layer.context, layer.cached))
        return dict(zip(x, cut(y, run.sizes, run.shares), strict=True)), layer


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """Sends every token through its expert's feed-forward layer, where that has one, and those that are added to it.

    `added` are the latter, see `transfusion.model.experts`."""

    added: Mapping[str, Shared | Routed]

    def shared(self, run: Pass) -> Pass:
        return run

    def apply(self, x: ExpertTokens, layer: Layer, shared: Pass) -> tuple[ExpertTokens, Layer]:
        run, given, blocks = shared, {}, layer.blocks.items()
        for expert, block in blocks:
            given[expert] = block.feed_forward_input(x[expert], layer.modulations[expert])
        outputs = {e: [block.feed_forward(given[e])] if block.up is not None else [] for e, block in blocks}
        loads = {}
        for name, module in self.added.items():
            found, loads[name] = self._added(bound(module, layer.added[name]), given, run)
            for expert, y in found.items():
                outputs[expert].append(y)
        x = {
            e: block.add_feed_forward(x[e], sum(outputs[e][1:], outputs[e][0]), layer.modulations[e])
            for e, block in blocks
        }
        return x, dataclasses.replace(layer, loads={name: seen for name, seen in loads.items() if seen})

    def _added(
        self, module: Shared | Routed, given: ExpertTokens, run: Pass
    ) -> tuple[ExpertTokens, dict[str, jax.Array]]:
        """What one of `added` gives each expert's tokens, and how many tokens of each stream its experts had [E]."""
        parts = {e: run.by_stream(e, tokens) for e, tokens in given.items()}
        passing = {s: x for of in parts.values() for s, x in of.items() if s in (module.config.streams or of)}
        if not passing:
            return {}, {}
        real = join([run.metadata[stream].document != 0 for stream in passing], run.shares)
        y, chosen = module(join(list(passing.values()), run.shares), real)
        sizes = [part.shape[1] for part in passing.values()]
        of_stream = dict(zip(passing, cut(y, sizes, run.shares), strict=True))
        loads = {}
        if chosen is not None:
            for stream, ids in zip(passing, cut(chosen, sizes, run.shares), strict=True):
                loads[stream] = load(ids, module.config.experts)
        found = {
            e: join([of_stream[s] if s in of_stream else jnp.zeros_like(x) for s, x in of.items()], run.shares)
            for e, of in parts.items()
            if any(s in of_stream for s in of)
        }
        return found, loads
