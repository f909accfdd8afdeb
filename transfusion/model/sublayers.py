"""The sublayers of a trunk's layer, in the order in which they add to the tokens.

`shared` makes once for a forward pass what is the same in all layers, such as a mask. `apply` then runs with one
layer's weights: it takes the tokens of every expert and gives them with what the sublayer adds, and it gives the layer
as the sublayers behind it find it, for self-attention writes the cache that cross-attention reads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.attention import masked_attention
from transfusion.model.block import Block
from transfusion.model.cache import KeyValues, Pair, attention_over, merged, write_layer
from transfusion.model.cross import CrossAttention
from transfusion.model.modulation import Condition, modulate
from transfusion.model.parameters import bound
from transfusion.sequence.masks import Metadata, see
from transfusion.sharding import by_heads, cut, join

ExpertTokens = dict[str, jax.Array]
"""The tokens of each expert [B, N, D]: those of its streams, joined along the row."""
Turn = tuple[jax.Array, jax.Array] | None
"""Cosines and sines of rotary positions, see `transfusion.model.rope.turns`."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a pass does with keys and values.

    Attributes:
      of: from one layer's cache and the keys and values of all new tokens to the cache as attention reads it, and to
        what the pass gives back of this layer.
      gives: whether it gives anything back.
      writes: whether the new tokens are in the cache that attention reads.
    """

    of: Callable[[Pair | None, Pair], tuple[Pair | None, Pair | None]]
    gives: bool = True
    writes: bool = False


NOTHING = Keep(lambda cached, new: (cached, None), gives=False)
NEW = Keep(lambda cached, new: (cached, merged(new)))


def written(at: jax.Array) -> Keep:
    """The new tokens go into the slots at int32 [B, N] before anything is read: a cache that is read first and written
    then would be copied in a loop."""

    def of(cached: Pair, new: Pair) -> tuple[Pair, Pair]:
        cached = write_layer(cached, new, at)
        return cached, cached

    return Keep(of, writes=True)


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one forward pass of a trunk knows of its tokens.

    Attributes:
      groups: per expert its streams, in the order in which they are joined.
      metadata: per stream [B, N].
      condition: of the modulated streams.
      turn: per expert.
      sizes: how many tokens each expert has.
      shares: see `transfusion.sharding.join`.
      may, may_cross: of self-attention and of cross-attention, see `transfusion.sequence.masks.see`.
      cache: what the tokens may see besides each other.
      context: metadata of a context among the tokens.
      keep: what becomes of keys and values.
      backend: of attention without a cache.
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
    backend: str

    def metadata_of(self, *experts: str) -> Metadata:
        """The metadata of the experts' tokens, joined."""
        return joined(self.metadata, [s for expert in experts for s in self.groups[expert]], self.shares)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one layer has of its own.

    Attributes:
      blocks: per expert its weights.
      modulations: per expert shifts, scales and gates of every token, see `transfusion.model.modulation`; or None.
      cross, second: weights of cross-attention and of the second attention, where the layer has them.
      context: keys and values of a context among the new tokens, before they are kept.
      cached: this layer of the cache.
      start: the tokens as they entered the layer.
      kept: what the pass gives back.
    """

    blocks: dict[str, Block]
    modulations: dict[str, list[jax.Array] | None]
    cross: dict[str, jax.Array] | None
    second: dict[str, Any] | None = None
    context: Pair | None = None
    cached: Pair | None = None
    start: ExpertTokens = dataclasses.field(default_factory=dict)
    kept: Pair | None = None


class Sublayer(Protocol):
    def shared(self, run: Pass) -> Any: ...

    def apply(self, x: ExpertTokens, layer: Layer, shared: Any) -> tuple[ExpertTokens, Layer]: ...


def joined(metadata: Mapping[str, Metadata], streams: list[str], shares: int = 1) -> Metadata:
    """The metadata of several streams' tokens along the row."""
    return jax.tree.map(lambda *parts: join(parts, shares), *[metadata[stream] for stream in streams])


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """Every token of every expert, among each other and over the cache."""

    def shared(self, run: Pass) -> tuple[Pass, Any]:
        tokens = run.metadata_of(*run.groups)
        # What is written into the cache is read there, and is not new besides.
        new = None if run.keep.writes else tokens
        return run, attention_over(tokens, new, run.cache, run.may, run.backend)

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
    """In place of all sublayers where only a context passes: it stays as it is, and its keys and values are kept."""

    def shared(self, run: Pass) -> Keep:
        return run.keep

    def apply(self, x: ExpertTokens, layer: Layer, shared: Keep) -> tuple[ExpertTokens, Layer]:
        return x, dataclasses.replace(layer, kept=shared.of(layer.cached, layer.context)[1])


@dataclasses.dataclass(frozen=True)
class SecondAttention:
    """One expert's tokens attend once more, to each other only, in the layers that have weights for it (Stable
    Diffusion 3.5). It reads the tokens as they entered the layer, under the norm of their self-attention."""

    block: Block
    expert: str
    dtype: str

    def shared(self, run: Pass) -> tuple[Pass, jax.Array | None]:
        if self.expert not in run.groups:
            return run, None
        tokens = run.metadata_of(self.expert)
        return run, see(tokens, tokens, run.may)

    def apply(self, x: ExpertTokens, layer: Layer, shared: tuple[Pass, jax.Array | None]) -> tuple[ExpertTokens, Layer]:
        (run, mask), expert = shared, self.expert
        if mask is None or layer.second is None:
            return x, layer
        (stream,) = run.groups[expert]
        condition = run.condition[stream]
        weights = layer.second["modulation"][stream]
        shift, scale, gate = modulate(weights, condition.vector, condition, self.dtype)
        second = bound(self.block, layer.second["block"])
        y = layer.blocks[expert].attention_input(layer.start[expert], (shift, scale))
        q, k, v = second.heads(y, run.turn[expert])
        return x | {expert: x[expert] + gate * second.project(masked_attention(q, k, v, mask))}, layer


@dataclasses.dataclass(frozen=True)
class OverContext:
    """Cross-attention of all tokens over a context, see `transfusion.model.cross`; nothing where there is none."""

    weights: CrossAttention

    def shared(self, run: Pass) -> tuple[Pass, Any]:
        if run.context is None and run.cache is None:
            return run, None
        tokens, new = run.metadata_of(*run.groups), None if run.keep.writes else run.context
        return run, attention_over(tokens, new, run.cache, run.may_cross, run.backend)

    def apply(self, x: ExpertTokens, layer: Layer, shared: tuple[Pass, Any]) -> tuple[ExpertTokens, Layer]:
        run, attend = shared
        if attend is None:
            return x, layer
        own = bound(self.weights, layer.cross)
        y = own(join(list(x.values()), run.shares), lambda q: attend(q, layer.context, layer.cached))
        return dict(zip(x, cut(y, run.sizes, run.shares), strict=True)), layer


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """Every token through its expert's feed-forward layer."""

    def shared(self, run: Pass) -> None:
        return None

    def apply(self, x: ExpertTokens, layer: Layer, shared: None) -> tuple[ExpertTokens, Layer]:
        return {e: block.add_feed_forward(x[e], layer.modulations[e]) for e, block in layer.blocks.items()}, layer
