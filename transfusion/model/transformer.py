"""The trunk: a pre-norm Transformer whose weights are chosen per token by a static slice, its expert.

Llama's block (RMSNorm, rotary positions, grouped-query attention, SwiGLU), as in the Transfusion paper, section 4.1.
One expert for all streams is a dense model; one per stream is a Mixture-of-Transformers (arXiv 2411.04996): every
weight of a block exists once per expert and attention stays global.

Shape letters: B rows, N tokens of a stream, L tokens of a row, D width, H heads, G key-value heads, K head size,
F hidden width of the feed-forward layer. A parameter with the leading axis `layers` is stacked over the depth.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.errors import UsageError, check
from transfusion.model import rope
from transfusion.model.attention import masked_attention
from transfusion.model.block import GROUPS, MODULATIONS, Block, Norm, dense, per_token
from transfusion.model.cache import KeyValues, Pair, attention_over, merged, write
from transfusion.model.config import REMAT, TransformerConfig
from transfusion.model.cross import CrossAttention
from transfusion.model.parameters import param, zeros
from transfusion.sequence.masks import Metadata, see
from transfusion.sharding import by_heads, constrain, cut, join, shares


@dataclasses.dataclass(frozen=True)
class Condition:
    """What modulates the tokens of a stream (adaLN): a vector per item, and the item of every token.

    Attributes:
      vector: [B, M, C], or [layers, B, M, C] where every layer has its own.
      item: [B, N].
      aligned: whether item m owns the m-th N / M slots.
    """

    vector: jax.Array
    item: jax.Array
    aligned: bool


class Modulation(nnx.Module):
    """From a condition to shifts, scales and gates; zero at first, so that a new layer changes nothing (adaLN-zero)."""

    def __init__(self, layers: int, width: int, parts: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (layers, width, parts * width), ("layers", "embed", None), zeros)
        self.bias = param(rngs, (layers, parts * width), ("layers", None), zeros)


def modulate(weights: dict[str, jax.Array], vector: jax.Array, condition: Condition, dtype: Any) -> list[jax.Array]:
    """The parts of one layer's modulation, [B, N, D] each; computed per item, then spread over its tokens."""
    parts = dense(jax.nn.silu(vector), weights["kernel"], weights["bias"])
    parts = per_token(parts, condition.item, condition.aligned).astype(dtype)
    return jnp.split(parts, parts.shape[-1] // weights["kernel"].shape[0], axis=-1)


class Trunk(nnx.Module):
    """All layers of all experts, and the final norms.

    Streams that share an expert are joined along the row into one larger matrix product.
    """

    def __init__(
        self, config: TransformerConfig, experts: Mapping[str, str], rngs: nnx.Rngs, modulated: tuple[str, ...] = ()
    ):
        """`experts` maps each stream to its expert, in the order of the config's streams; `modulated` are those with a
        condition."""
        self.config = config
        self.experts = {stream: expert for stream, expert in experts.items() if stream not in config.cross}
        names = list(dict.fromkeys(self.experts.values()))
        self.first = names[0]
        own = {name: GROUPS if name == self.first else config.untied for name in names}
        for name in config.qk_norm_absent:
            check("model.qk_norm_absent", name, names)
        plain = dataclasses.replace(config, qk_norm="none", qk_norm_absent=())
        kinds = {name: plain if name in config.qk_norm_absent else config for name in names}
        self.blocks = nnx.Dict({name: Block(kinds[name], rngs, own[name]) for name in names})
        norm = Norm(config.norm, config.norm_epsilon)
        finals = {name: norm.declare(rngs, (), config.width) for name in names if "final_norm" in own[name]}
        if config.final_norm:
            self.final_norm = nnx.Dict({name: weights[""] for name, weights in finals.items() if weights})
            if config.norm == "layer":
                self.final_norm_bias = nnx.Dict({name: weights["_bias"] for name, weights in finals.items()})
        if modulated:
            n, d = config.layers, config.width
            self.modulation = nnx.Dict({name: Modulation(n, d, MODULATIONS, rngs) for name in modulated})
        if config.cross:
            self.cross = CrossAttention(config, rngs)
        if config.dual_layers:
            if config.dual_expert not in names:
                raise UsageError(f"model.dual_expert: no expert {config.dual_expert!r}")
            few = dataclasses.replace(config, layers=len(config.dual_layers), dual_layers=())
            self.dual = Block(few, rngs, ("qkv", "o", "qk_norm"))
            streams = [s for s in modulated if experts[s] == config.dual_expert]
            self.dual_modulation = nnx.Dict({s: Modulation(few.layers, config.width, 3, rngs) for s in streams})

    def __call__(
        self,
        x: Mapping[str, jax.Array],
        position: Mapping[str, jax.Array],
        metadata: Mapping[str, Metadata],
        *,
        condition: Mapping[str, Condition] | None = None,
        cache: KeyValues | None = None,
        slots: Mapping[str, jax.Array] | None = None,
        may: np.ndarray | None = None,
        may_cross: np.ndarray | None = None,
        keep: bool = False,
    ) -> tuple[dict[str, jax.Array], KeyValues | None]:
        """Runs the trunk over some streams' tokens.

        Args:
          x: per stream [B, N, D].
          position: per stream int32 [B, N, A].
          metadata: per stream [B, N].
          condition: of the modulated streams.
          cache: keys and values that the tokens may see besides each other.
          slots: per stream int32 [B, N], where in the cache to write the tokens, whose metadata is there already.
          may, may_cross: see `transfusion.sequence.masks.see`; of self-attention and of cross-attention.
          keep: whether, without `slots`, to return the tokens' keys and values.

        Returns:
          Normed outputs per stream [B, N, D], a context's as it came in, and the KeyValues of the tokens in the `order`
          of their streams; with `slots` the written cache; or None.
        """
        config, condition = self.config, condition or {}
        groups = self._groups(x)
        outside = [s for s in x if s in config.cross]
        context = self.cross.keys_values(_join(x, outside).astype(config.dtype)) if outside else None
        at = None if slots is None else _join(slots, self.order(x))
        # What is kept is kept in the order of the streams.
        n = 1 if keep or cache is not None else shares(part.shape[1] for part in x.values())
        if not groups:
            return dict(x), self._only_context(context, cache, at, _tokens(metadata, outside) if keep else None)
        tokens = _tokens(metadata, [s for streams in groups.values() for s in streams], n)
        joined = {
            expert: constrain(_join(x, streams, n).astype(config.dtype), "batch", "tokens", None)
            for expert, streams in groups.items()
        }
        turn = {expert: self._turn(_join(position, streams, n)) for expert, streams in groups.items()}
        # What is written into the cache is read there, and is not new besides.
        attend = attention_over(tokens, tokens if at is None else None, cache, may, config.attention)
        beside = _tokens(metadata, outside) if outside and at is None else None
        across = self._across(tokens, beside, cache, may_cross, n)
        sizes = [part.shape[1] for part in joined.values()]

        def layer(carry, scanned):
            (weights, modulation, cross), vectors, cached, given, dual = scanned
            blocks = {e: self._block(e, weights) for e in groups}
            parts = {
                s: modulate(w, vectors.get(s, condition[s].vector), condition[s], config.dtype)
                for s, w in modulation.items()
            }
            parts = {e: _modulations(streams, x, parts, config, n) for e, streams in groups.items()}
            qkv = [blocks[e].queries_keys_values(carry[e], turn[e], parts[e]) for e in groups]
            q, k, v = by_heads(*(join(t, n) for t in zip(*qkv, strict=True)))
            # Of all new tokens, a context's last.
            new = (k, v) if given is None else tuple(jnp.concatenate(two, 1) for two in zip((k, v), given, strict=True))
            if at is not None:
                # Before it is read: a cache that is read first and written then would be copied in a loop.
                cached = write(cached, new, at)
            kept = cached if at is not None else merged(new) if keep else None
            outs = cut(attend(q, (k, v), cached), sizes, n)
            extra = {e: None for e in groups}
            if dual is not None and config.dual_expert in groups:
                e = config.dual_expert
                among = _tokens(metadata, groups[e], n)
                extra[e] = self._attend_dual(dual, blocks[e], carry[e], turn[e], groups[e], condition, among, may)
            x_new = {
                e: blocks[e].add_attention(carry[e], out, parts[e], extra[e])
                for e, out in zip(groups, outs, strict=True)
            }
            x_new = x_new if across is None else across(x_new, cross, given, cached)
            x_new = {e: blocks[e].add_feed_forward(y, parts[e]) for e, y in x_new.items()}
            return {e: constrain(y, "batch", "tokens", None) for e, y in x_new.items()}, kept

        needed = dict.fromkeys((self.first, *groups))
        weights = {e: _pure(self.blocks[e]) for e in needed}
        modulation = {s: _pure(self.modulation[s]) for s in x if s in condition}
        vectors = {s: c.vector for s, c in condition.items() if s in x and c.vector.ndim == 4}
        tables = (weights, modulation, None if across is None else _pure(self.cross))
        out, kept = self._through(layer, joined, (tables, vectors, context), cache)
        result = {s: x[s] for s in outside}
        for expert, streams in groups.items():
            parts = cut(self._final(out[expert], expert), [x[s].shape[1] for s in streams], n)
            result |= dict(zip(streams, parts, strict=True))
        if kept is None:
            return result, None
        every = _tokens(metadata, self.order(x)) if at is None else cache.metadata
        return result, KeyValues(*kept, every).like(cache)

    def _block(self, expert: str, weights: Mapping[str, dict[str, jax.Array]]) -> Block:
        """An expert with one layer's weights: what it does not own is the first expert's."""
        if self.config.qk_norm_absent:  # every expert owns all of its weights, and they are of two kinds
            return _bind(self.blocks[expert], weights[expert])
        return _bind(self.blocks[self.first], weights[self.first] | weights[expert])

    def _through(self, layer, joined, scanned, cache: KeyValues | None):
        """Runs all layers, as a scan or as a loop that the compiler sees; `scanned` is what each has a part of."""
        config = self.config
        if REMAT[config.remat] is not None:
            layer = jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=not config.scan)
        if not config.scan or config.dual_layers:
            return _unrolled(layer, joined, scanned, cache, config.layers, self._duals())
        tables, vectors, context = scanned
        cached = None if cache is None else (cache.stacked().k, cache.stacked().v)
        return jax.lax.scan(lambda x, part: layer(x, (*part, None)), joined, (tables, vectors, cached, context))

    def _groups(self, streams: Iterable[str]) -> dict[str, list[str]]:
        """The streams of each expert, without a context."""
        groups: dict[str, list[str]] = {}
        for stream in (s for s in streams if s in self.experts):
            groups.setdefault(self.experts[stream], []).append(stream)
        return groups

    def order(self, streams: Iterable[str]) -> list[str]:
        """The order in which attention joins the streams, and in which keys and values are kept; a context is last."""
        inside = [stream for group in self._groups(streams).values() for stream in group]
        return inside + [stream for stream in streams if stream not in self.experts]

    def _turn(self, position: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        config = self.config
        if not config.rope_theta:
            return None
        angle = rope.angles(
            position, config.size, config.rope_theta, config.rope_sections, config.rope_interleaved,
            config.rope_scaling,
        )  # fmt: skip
        return rope.turns(angle, config.rope_scaling.magnitude)

    def _across(
        self, tokens: Metadata, context: Metadata | None, cache: KeyValues | None, may: np.ndarray | None, shares: int
    ):
        """One layer's cross-attention, a function of (tokens per expert, its weights, the context's keys and values,
        cached); None where there is no context."""
        if not self.config.cross or (context is None and cache is None):
            return None
        attend = attention_over(tokens, context, cache, may, self.config.attention)

        def across(x, weights, given, cached):
            y = _bind(self.cross, weights)(join(list(x.values()), shares), lambda q: attend(q, given, cached))
            return dict(zip(x, cut(y, [part.shape[1] for part in x.values()], shares), strict=True))

        return across

    def _only_context(
        self, context: Pair, cache: KeyValues | None, at: jax.Array | None, tokens: Metadata | None
    ) -> KeyValues | None:
        """What is kept of tokens that this trunk leaves as they are, and that are alone: see `__call__`."""
        new = [tuple(x[i] for x in context) for i in range(self.config.layers)]
        if at is not None:
            layers = [write((cache.k[i], cache.v[i]), pair, at) for i, pair in enumerate(new)]
        elif tokens is not None:
            layers = [merged(pair) for pair in new]
        else:
            return None
        return KeyValues(*zip(*layers, strict=True), tokens if at is None else cache.metadata).like(cache)

    def _duals(self) -> dict[int, dict[str, Any]]:
        """Weights of the second attention, of the layers that have one."""
        if not self.config.dual_layers:
            return {}
        stacked = {"block": _pure(self.dual), "modulation": {s: _pure(m) for s, m in self.dual_modulation.items()}}
        return {n: jax.tree.map(lambda w, i=i: w[i], stacked) for i, n in enumerate(self.config.dual_layers)}

    def _attend_dual(self, dual, block, x, turn, streams, condition, tokens, may) -> jax.Array:
        """What the second attention, among one expert's tokens, adds to them."""
        (stream,) = streams
        shift, scale, gate = modulate(
            dual["modulation"][stream], condition[stream].vector, condition[stream], self.config.dtype
        )
        second = _bind(self.dual, dual["block"])
        q, k, v = second.heads(block.before(x, "attention_norm", (shift, scale)), turn)
        return gate * second.project(masked_attention(q, k, v, see(tokens, tokens, may)))

    def _final(self, y: jax.Array, expert: str) -> jax.Array:
        config = self.config
        if not config.final_norm:
            return y
        owner = expert if "final_norm" in config.untied else self.first
        scale = None if config.norm == "plain" else self.final_norm[owner][...]
        bias = self.final_norm_bias[owner][...] if config.norm == "layer" else None
        return Norm(config.norm, config.norm_epsilon)(y, scale, bias)


def _modulations(streams, x, parts, config: TransformerConfig, shares: int) -> list[jax.Array] | None:
    """The modulations of the joined streams' tokens; streams without one are left as they are."""
    if not any(s in parts for s in streams):
        return None

    def of(stream, i):
        if stream in parts:
            return parts[stream][i]
        return jnp.full(x[stream].shape, 1.0 if i in (2, 5) else 0.0, config.dtype)

    return [join([of(s, i) for s in streams], shares) for i in range(MODULATIONS)]


def _pure(module: nnx.Module) -> dict[str, jax.Array]:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def _join(parts: Mapping[str, jax.Array], streams: list[str], shares: int = 1) -> jax.Array:
    return join([parts[s] for s in streams], shares)


def _tokens(metadata: Mapping[str, Metadata], streams: list[str], shares: int = 1) -> Metadata:
    return jax.tree.map(lambda *parts: join(parts, shares), *[metadata[s] for s in streams])


def _bind(block: Any, weights: dict[str, jax.Array]) -> Any:
    """The module with one layer's weights."""
    graph, state = nnx.split(block)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def by_layer(params: dict[str, Any]) -> dict[str, Any]:
    """The trunk's parameters with a tuple of layers in place of each stacked array, for an unrolled trunk in a loop.

    The compiler would take the slices anew in every step, which reads and writes all weights once more; the barrier
    holds them outside.
    """

    def split(x):
        return jax.lax.optimization_barrier(tuple(x[i] for i in range(x.shape[0])))

    stacked = {name: params[name] for name in ("blocks", "modulation") if name in params}
    return params | jax.tree.map(split, stacked)


def _by_layer(weight: Any) -> bool:
    return isinstance(weight, tuple)


def _unrolled(layer, carry, scanned, cache: KeyValues | None, layers: int, duals: dict[int, Any]):
    """jax.lax.scan as a Python loop: the compiler sees every layer. `duals`: see `Trunk._duals`."""
    kept = []
    for i in range(layers):
        # A tuple holds a parameter's layers one by one (see `by_layer`).
        tables = [jax.tree.map(lambda w, i=i: w[i], table, is_leaf=_by_layer) for table in scanned[0]]
        vectors, context = jax.tree.map(lambda x, i=i: x[i], scanned[1:])
        cached = None if cache is None else (cache.k[i], cache.v[i])
        carry, out = layer(carry, (tables, vectors, cached, context, duals.get(i)))
        kept.append(out)
    return carry, None if kept[0] is None else tuple(zip(*kept, strict=True))
