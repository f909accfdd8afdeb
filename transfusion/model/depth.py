"""Runs a layer over the depth of a trunk: as a scan, or as a loop in which the compiler sees every layer."""

from collections.abc import Callable
from typing import Any

import jax

from transfusion.model.cache import Layers, Pair, stacked
from transfusion.model.config import REMAT, TransformerConfig
from transfusion.model.parameters import Params
from transfusion.model.sublayers import ExpertTokens

Kept = tuple[Layers, Layers] | None
Function = Callable[..., tuple[ExpertTokens, Pair | None]]
"""One layer: from the tokens, its part of `each`, of the context and of the cache, and the weights of its second
attention to the tokens and to the keys and values that are kept."""


def by_layer(params: Params) -> Params:
    """Replaces each stacked array of the trunk's parameters by a tuple of layers, for an unrolled trunk in a loop.

    Otherwise the compiler would slice the arrays in every step, and so read and write all weights once more; the
    barrier keeps the slicing outside of the loop.
    """

    def split(x):
        return jax.lax.optimization_barrier(tuple(x[i] for i in range(x.shape[0])))

    stacked = {name: params[name] for name in ("blocks", "modulation") if name in params}
    return params | jax.tree.map(split, stacked)


def through(
    layer: Function,
    config: TransformerConfig,
    tokens: ExpertTokens,
    each: dict[str, Any],
    context: Pair | None,
    cached: Kept,
    seconds: dict[int, dict[str, Any]],
) -> tuple[ExpertTokens, Kept]:
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
      The tokens, and what `layer` keeps, joined over all layers; None if it keeps None.
    """
    if REMAT[config.remat] is not None:
        layer = jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=not config.scan)
    # A scan has one body for all layers, so not where they differ; and where nothing is computed, it saves nothing.
    if not config.scan or seconds or not tokens:
        return _unrolled(layer, config.layers, tokens, each, context, cached, seconds)
    whole = None if cached is None else tuple(stacked(x) for x in cached)
    tokens, kept = jax.lax.scan(lambda x, part: layer(x, *part, None), tokens, (each, context, whole))
    return tokens, kept


def _unrolled(layer, layers, tokens, each, context, cached, seconds):
    """Does the same as `through`, as a loop over the layers."""
    kept = []
    cached = None if cached is None else tuple(tuple(x) for x in cached)
    for i in range(layers):
        own = jax.tree.map(lambda w, i=i: w[i], each, is_leaf=_one_by_one)
        given = None if context is None else tuple(x[i] for x in context)
        before = None if cached is None else tuple(x[i] for x in cached)
        tokens, out = layer(tokens, own, given, before, seconds.get(i))
        kept.append(out)
    if kept[0] is None:
        return tokens, None
    return tokens, tuple(zip(*kept, strict=True))


def _one_by_one(weight: Any) -> bool:
    """Whether the value is a tuple of a parameter's layers, as `by_layer` makes it."""
    return isinstance(weight, tuple)
