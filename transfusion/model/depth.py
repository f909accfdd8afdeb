"""Runs a layer over the depth of a trunk: as a scan, or as a loop in which the compiler sees every layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.cache import CachedLayer, Pair, Stacks
from transfusion.model.config import REMAT, TransformerConfig
from transfusion.model.gathered import keeps
from transfusion.model.parameters import Params
from transfusion.model.sublayers import ExpertTokens
from transfusion.sharding import parts

Cached = tuple[Stacks, Stacks] | None
"""A trunk's part of a cache, keys and values."""
Function = Callable[..., tuple[ExpertTokens, CachedLayer | None, Any]]
"""One layer: from the tokens, its part of `each`, of the context and of the cache, and the weights of its second
attention to the tokens, the layer of the cache after it, and what is returned beside the cache."""


def by_layer(params: Params) -> Params:
    """Replaces each stacked array of the trunk's parameters by a tuple of layers, for an unrolled trunk in a loop.

    Otherwise the compiler would slice the arrays in every step, and so read and write all weights once more; the
    barrier keeps the slicing outside of the loop.
    """

    def split(x):
        return jax.lax.optimization_barrier(tuple(x[i] for i in range(x.shape[0])))

    stacked = {name: params[name] for name in ("blocks", "modulation", "feed_forwards") if name in params}
    return params | jax.tree.map(split, stacked)


def through(
    layer: Function,
    config: TransformerConfig,
    tokens: ExpertTokens,
    each: dict[str, Any],
    context: Pair | None,
    cached: Cached,
    seconds: dict[int, dict[str, Any]],
) -> tuple[ExpertTokens, Cached, Any]:
    """Runs all layers.

    Args:
      layer: see `Function`.
      config: the trunk's config.
      tokens: the tokens as they enter the first layer.
      each: the layers' own values: arrays with the leading axis `layers`, or tuples of layers (see `by_layer`).
      context: keys and values [layers, B, S, G, K].
      cached: the trunk's part of a cache.
      seconds: weights of the second attention, by the number of each layer that has it.

    Returns:
      The tokens, the cache after all layers, and what they return beside it, stacked.
    """
    policy = REMAT[config.remat] or (keeps if parts("embed") > 1 else None)
    if policy is not None:
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=not config.scan)
    # A scan has one body for all layers, so not where they differ; and where nothing is computed, it saves nothing.
    if not config.scan or seconds or not tokens:
        return _unrolled(layer, config.layers, tokens, each, context, cached, seconds)
    return _scanned(layer, config.layers, tokens, each, context, cached)


def _scanned(layer, layers, tokens, each, context, cached):
    """Does the same as `through`, as a scan, which carries the whole cache so that layers write into it in place."""

    def step(carry, part):
        (x, stack), (number, own, given) = carry, part
        x, after, new = layer(x, own, given, None if stack is None else CachedLayer(*stack, number), None)
        return (x, None if after is None else (after.k, after.v)), new

    if cached is None:
        (tokens, _), new = jax.lax.scan(step, (tokens, None), (None, each, context))
        return tokens, None, new
    sizes = [len(x) for x in cached[0]]
    stack = tuple(stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks) for stacks in cached)
    (tokens, stack), new = jax.lax.scan(step, (tokens, stack), (jnp.arange(layers), each, context))
    k, v = (tuple(jnp.split(x, np.cumsum(sizes)[:-1].tolist())) for x in stack)
    return tokens, (k, v), new


def _unrolled(layer, layers, tokens, each, context, cached, seconds):
    """Does the same as `through`, as a loop over the layers."""
    kept = []
    stacks = None if cached is None else list(zip(*cached, strict=True))
    places = [] if cached is None else [(s, i) for s, x in enumerate(cached[0]) for i in range(len(x))]
    for i in range(layers):
        own = jax.tree.map(lambda w, i=i: w[i], each, is_leaf=_one_by_one)
        given = None if context is None else tuple(x[i] for x in context)
        before = CachedLayer(*stacks[places[i][0]], places[i][1]) if places else None
        tokens, after, new = layer(tokens, own, given, before, seconds.get(i))
        if places:
            stacks[places[i][0]] = (after.k, after.v)
        kept.append(new)
    new = jax.tree.map(lambda *parts: jnp.stack(parts), *kept)
    return tokens, None if cached is None else tuple(zip(*stacks, strict=True)), new


def _one_by_one(weight: Any) -> bool:
    """Whether the value is a tuple of a parameter's layers, as `by_layer` makes it."""
    return isinstance(weight, tuple)
