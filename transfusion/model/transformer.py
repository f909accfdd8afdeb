"""The trunk: a pre-norm Transformer whose weights are chosen per token by a static slice, its expert.

Llama's block (RMSNorm, rotary positions, grouped-query attention, SwiGLU), as in the Transfusion paper, section 4.1.
One expert for all streams is a dense model; one per stream is a Mixture-of-Transformers (arXiv 2411.04996): every
weight of a block exists once per expert and attention stays global.

Shape letters: B rows, N tokens of a stream, L tokens of a row, D width, H heads, G key-value heads, K head size,
F hidden width of the feed-forward layer. A parameter with the leading axis `layers` is stacked over the depth.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from transfusion.errors import UsageError, check
from transfusion.model import rope
from transfusion.model.attention import FindBackend, backend_of
from transfusion.model.block import GROUPS, MATRICES_OF, MODULATIONS, Block, Norm, cast_once
from transfusion.model.cache import KeyValues, Pair
from transfusion.model.config import TransformerConfig
from transfusion.model.cross import CrossAttention
from transfusion.model.depth import Cached, through
from transfusion.model.experts import KINDS, check_feed_forwards
from transfusion.model.modulation import Condition, Modulation, modulate, modulations
from transfusion.model.parameters import array, bound, pure
from transfusion.model.sublayers import (
    NEW,
    NOTHING,
    ContextAlone,
    FeedForward,
    Keep,
    Layer,
    OverContext,
    Pass,
    SecondAttention,
    SelfAttention,
    Sublayer,
    Turn,
    joined,
    written,
)
from transfusion.sequence.masks import Metadata
from transfusion.sharding import constrain, cut, join, shares

FIRST = "trunk"  # the name of the first trunk of a model
Loads = dict[str, dict[str, jax.Array]]
"""For each routed feed-forward layer and each stream, how many tokens each of its experts had, [layers, E]; and what
`transfusion.model.observe` has seen."""


@dataclasses.dataclass(frozen=True)
class TrunkInputs:
    """The tokens of some streams, with their positions, metadata and conditions, as a trunk takes them.

    Attributes:
      x: per stream [B, N, D].
      position: per stream int32 [B, N, A].
      metadata: per stream [B, N].
      condition: the conditions of the modulated streams.
      may, may_cross: tables of self-attention and of cross-attention, see `transfusion.sequence.masks.see`.
    """

    x: Mapping[str, jax.Array]
    position: Mapping[str, jax.Array]
    metadata: Mapping[str, Metadata]
    condition: Mapping[str, Condition] = dataclasses.field(default_factory=dict)
    may: np.ndarray | None = None
    may_cross: np.ndarray | None = None


class Trunk(nnx.Module):
    """All layers of all experts, and the final norms.

    Streams that share an expert are joined along the row into one larger matrix product. Call the trunk itself in
    training, and where tokens see a cache but leave nothing in it; `read` also returns the tokens' keys and values, and
    `extend` writes them into a cache.
    """

    def __init__(
        self,
        config: TransformerConfig,
        experts: Mapping[str, str],
        rngs: nnx.Rngs,
        modulated: tuple[str, ...] = (),
        name: str = FIRST,
        find_backend: FindBackend = backend_of,
        more: tuple[Sublayer, ...] = (),
    ):
        """Builds a trunk for the streams of `experts`.

        `experts` maps each stream to its expert, in the order of the config's streams; the streams of `modulated` have
        a condition; the trunk finds its part of a cache by its `name`, and its attention by `find_backend`. The
        sublayers `more` come behind the others."""
        self.config, self.name, self.find_backend, self.more = config, name, find_backend, more
        self.experts = {stream: expert for stream, expert in experts.items() if stream not in config.cross}
        names = list(dict.fromkeys(self.experts.values()))
        self.first = names[0]
        own = {name: GROUPS if name == self.first else config.untied for name in names}
        for name in config.ffn_absent:
            check("model.ffn_absent", name, names)
            own[name] = tuple(group for group in own[name] if group != "ffn")
        released = config.released
        for name in released.qk_norm_absent:
            check("model.released.qk_norm_absent", name, names)
        plain = dataclasses.replace(config, qk_norm="none", released=dataclasses.replace(released, qk_norm_absent=()))
        kinds = {name: plain if name in released.qk_norm_absent else config for name in names}
        self.blocks = nnx.Dict({name: Block(kinds[name], rngs, own[name]) for name in names})
        norm = Norm(config.norm, config.norm_epsilon)
        finals = {name: norm.declare(rngs, (), config.width) for name in names if "final_norm" in own[name]}
        finals = finals if config.final_norm else {}
        self.final_norm = nnx.Dict({name: scale for name, (scale, _) in finals.items() if scale is not None})
        self.final_norm_bias = nnx.Dict({name: bias for name, (_, bias) in finals.items() if bias is not None})
        n, d = config.layers, config.width
        self.modulation = nnx.Dict({name: Modulation(n, d, MODULATIONS, rngs) for name in modulated})
        self.cross = CrossAttention(config, rngs) if config.cross else None
        if released.dual_layers and released.dual_expert not in names:
            raise UsageError(f"model.released.dual_expert: no expert {released.dual_expert!r}")
        few = len(released.dual_layers)
        self.dual = Block(dataclasses.replace(config, layers=few or 1), rngs, ("qkv", "o", "qk_norm") if few else ())
        streams = [s for s in modulated if few and experts[s] == released.dual_expert]
        self.dual_modulation = nnx.Dict({s: Modulation(few, config.width, 3, rngs) for s in streams})
        # Experts whose blocks have weights of several kinds own all of theirs.
        self.apart = bool(released.qk_norm_absent) or 0 < len({*config.ffn_absent}) < len(names)
        check_feed_forwards(config, self.experts, self.apart)
        self.feed_forwards = nnx.Dict({n: KINDS[c.kind](config, c, rngs) for n, c in config.feed_forwards.items()})

    def __call__(self, inputs: TrunkInputs, cache: KeyValues | None = None) -> dict[str, jax.Array]:
        """Returns the normed outputs per stream [B, N, D]; a context is returned unchanged.

        The tokens see each other and the cache."""
        return self._run(inputs, cache, NOTHING)[0]

    def counted(self, inputs: TrunkInputs) -> tuple[dict[str, jax.Array], Loads]:
        """Returns the same outputs, and how many tokens the experts of each routed layer had, without padding."""
        outputs, _, (_, loads) = self._run(inputs, None, NOTHING)
        return outputs, loads

    def read(self, inputs: TrunkInputs, cache: KeyValues | None = None) -> tuple[dict[str, jax.Array], KeyValues]:
        """Returns the same outputs, and the keys and values of these tokens in the `order` of their streams."""
        outputs, _, ((k, v), _) = self._run(inputs, cache, NEW)
        metadata = joined(inputs.metadata, self.order(inputs.x))
        return outputs, KeyValues({self.name: (k,)}, {self.name: (v,)}, metadata)

    def extend(
        self, inputs: TrunkInputs, cache: KeyValues, slots: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], KeyValues]:
        """Returns the same outputs, and the cache with the tokens in it.

        Args:
          inputs: the tokens.
          cache: has the tokens' metadata already.
          slots: the slots of the cache to which the tokens are written, per stream int32 [B, N].
        """
        at = join([slots[stream] for stream in self.order(inputs.x)])
        outputs, (k, v), _ = self._run(inputs, cache, written(at))
        return outputs, KeyValues({**cache.k, self.name: k}, {**cache.v, self.name: v}, cache.metadata)

    def _run(
        self, inputs: TrunkInputs, cache: KeyValues | None, keep: Keep
    ) -> tuple[dict[str, jax.Array], Cached, tuple[Pair | None, Loads]]:
        """Runs all layers.

        Returns:
          The outputs, the trunk's part of the cache, and beside it what `keep` gives and the loads of experts.
        """
        config, x, groups = self.config, inputs.x, self._groups(inputs.x)
        outside = [stream for stream in x if stream in config.cross]
        # Keys and values that are kept, or lie in a cache, are in the order of the streams.
        n = 1 if keep.gives or cache is not None else shares(part.shape[1] for part in x.values())
        tokens = {
            expert: constrain(_join(x, streams, n).astype(config.dtype), "batch", "tokens", None)
            for expert, streams in groups.items()
        }
        run = Pass(
            groups, inputs.metadata, inputs.condition,
            turn={expert: self._turn(_join(inputs.position, streams, n)) for expert, streams in groups.items()},
            sizes=[part.shape[1] for part in tokens.values()],
            shares=n, may=inputs.may, may_cross=inputs.may_cross, cache=cache,
            context=joined(inputs.metadata, outside) if outside else None,
            keep=keep, backend=partial(self.find_backend, config.attention), size=config.size, dtype=config.dtype,
        )  # fmt: skip
        sublayers = self._sublayers() if groups else [ContextAlone()]
        shared = [sublayer.shared(run) for sublayer in sublayers]

        def layer(tokens, each, context, cached, second):
            one = self._layer(run, x, each)
            one = dataclasses.replace(one, context=context, cached=cached, second=second, start=tokens)
            for sublayer, what in zip(sublayers, shared, strict=True):
                tokens, one = sublayer.apply(tokens, one, what)
            tokens = {e: constrain(y, "batch", "tokens", None) for e, y in tokens.items()}
            return tokens, one.cached, (one.kept, one.loads)

        context = self.cross.keys_values(_join(x, outside).astype(config.dtype)) if outside else None
        cached = None if cache is None else (cache.k[self.name], cache.v[self.name])
        each, seconds = self._each(run, context), self._seconds()
        tokens, cached, new = through(layer, config, tokens, each, context, cached, seconds)
        result = {stream: x[stream] for stream in outside}
        for expert, streams in groups.items():
            parts = cut(self._final(tokens[expert], expert), [x[s].shape[1] for s in streams], n)
            result |= dict(zip(streams, parts, strict=True))
        return result, cached, new

    def _sublayers(self) -> list[Sublayer]:
        sublayers: list[Sublayer] = [SelfAttention()]
        if self.config.released.dual_layers:
            sublayers.append(SecondAttention(self.dual, self.config.released.dual_expert, self.config.dtype))
        if self.cross is not None:
            sublayers.append(OverContext(self.cross))
        return [*sublayers, FeedForward(dict(self.feed_forwards.items())), *self.more]

    def _each(self, run: Pass, context: Pair | None) -> dict[str, Any]:
        """Collects weights, modulations and context of all layers, as `each` of `transfusion.model.depth.through`."""
        experts = dict.fromkeys((self.first, *run.groups)) if run.groups else ()
        crosses = run.groups and self.config.cross and (context is not None or run.cache is not None)
        modulated = [s for streams in run.groups.values() for s in streams if s in run.condition]
        dtype, shared = self.config.dtype, self._shared(run)
        return {
            "blocks": {expert: cast_once(pure(self.blocks[expert]), dtype, shared) for expert in experts},
            "modulation": {stream: pure(self.modulation[stream]) for stream in modulated},
            "vectors": {s: run.condition[s].vector for s in modulated if run.condition[s].vector.ndim == 4},
            "cross": cast_once(pure(self.cross), dtype) if crosses else None,
            "added": {name: cast_once(pure(layer), dtype) for name, layer in self.feed_forwards.items()},
        }

    def _shared(self, run: Pass) -> list[str]:
        """The matrices that several experts use. Their gradients are summed in float32, and so each use casts them."""
        several = len(run.groups) > 1
        return [n for group, names in MATRICES_OF.items() if several and group not in self.config.untied for n in names]

    def _layer(self, run: Pass, x: Mapping[str, jax.Array], each: dict[str, Any]) -> Layer:
        """Builds one layer from its part of `_each`."""
        dtype = self.config.dtype
        parts = {
            s: modulate(w, each["vectors"].get(s, run.condition[s].vector), run.condition[s], dtype)
            for s, w in each["modulation"].items()
        }
        blocks = {e: self._block(e, each["blocks"]) for e in run.groups}
        return Layer(
            blocks, {e: modulations(streams, x, parts, dtype, run.shares) for e, streams in run.groups.items()},
            each["cross"], added=each["added"],
        )  # fmt: skip

    def _block(self, expert: str, weights: Mapping[str, dict[str, jax.Array]]) -> Block:
        """Builds the block of an expert with one layer's weights; those that it does not own are the first expert's."""
        if self.apart:
            return bound(self.blocks[expert], weights[expert])
        return bound(self.blocks[self.first], weights[self.first] | weights[expert])

    def _groups(self, streams: Iterable[str]) -> dict[str, list[str]]:
        """Groups streams by their expert, without a context."""
        groups: dict[str, list[str]] = {}
        for stream in (s for s in streams if s in self.experts):
            groups.setdefault(self.experts[stream], []).append(stream)
        return groups

    def order(self, streams: Iterable[str]) -> list[str]:
        """The order in which attention joins the streams, and in which keys and values are kept; a context is last."""
        inside = [stream for group in self._groups(streams).values() for stream in group]
        return inside + [stream for stream in streams if stream not in self.experts]

    def _turn(self, position: jax.Array) -> Turn:
        config, released = self.config, self.config.released
        if not config.rope_theta:
            return None
        angle = rope.angles(
            position, config.size, config.rope_theta, released.rope_sections, config.rope_interleaved,
            released.rope_scaling,
        )  # fmt: skip
        return rope.turns(angle, released.rope_scaling.magnitude)

    def _seconds(self) -> dict[int, dict[str, Any]]:
        """The weights of the second attention, by the number of each layer that has it."""
        layers = self.config.released.dual_layers
        if not layers:
            return {}
        modulation = {s: pure(m) for s, m in self.dual_modulation.items()}
        stacked = {"block": cast_once(pure(self.dual), self.config.dtype), "modulation": modulation}
        return {n: jax.tree.map(lambda w, i=i: w[i], stacked) for i, n in enumerate(layers)}

    def _final(self, y: jax.Array, expert: str) -> jax.Array:
        config = self.config
        if not config.final_norm:
            return y
        owner = expert if "final_norm" in config.untied else self.first
        scale, bias = self.final_norm.get(owner), self.final_norm_bias.get(owner)
        return Norm(config.norm, config.norm_epsilon)(y, array(scale), array(bias))


def _join(parts: Mapping[str, jax.Array], streams: list[str], shares: int = 1) -> jax.Array:
    return join([parts[s] for s in streams], shares)
