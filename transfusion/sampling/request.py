"""The request for an image: the prefix after which it is drawn, and code that all ways of drawing share.

Shape letters: B rows, N tokens of an image, E numbers of a patch, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.model.cache import KeyValues
from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.choose import Filters
from transfusion.sampling.guidance import Guidance
from transfusion.sampling.parts import PaintedParts
from transfusion.sampling.place import Place, lay


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """The prefix after which an image is drawn: the cache, the place of its rows, and which rows bool [B] draw."""

    cache: KeyValues
    place: Place
    rows: jax.Array


def read_preamble(model: UnifiedModel, parts: PaintedParts, prefix: Prefix) -> Prefix:
    """Adds the tokens to the prefix that are computed once before the noised ones (learned queries)."""
    part = parts.preamble
    if not part.length:
        return prefix
    rows, used = prefix.rows, prefix.cache.metadata.order.shape[1]
    inputs = lay(part, parts.spec, prefix.place, rows, {}, jnp.ones(len(rows)))
    slots = {}
    for name, piece in inputs.items():
        b, n = piece.metadata.order.shape
        slots[name] = jnp.broadcast_to(used + jnp.arange(n), (b, n))
        used += n
    cache = prefix.cache.grown(used - prefix.cache.metadata.order.shape[1])
    return Prefix(model.extend(inputs, cache, slots)[1], prefix.place.after(part, rows), rows)


def predict(
    model: UnifiedModel,
    parts: PaintedParts,
    prefix: Prefix,
    x: jax.Array,
    t: jax.Array,
    ahead: jax.Array | None = None,
) -> jax.Array:
    """Computes the head's prediction for x [B, N, E] at the time t, as far `ahead` (scalars): float32 [B, N, E]."""
    name = parts.name
    time = jnp.broadcast_to(t, x.shape[:1])
    far = None if ahead is None else jnp.broadcast_to(ahead, x.shape[:1])
    inputs = lay(parts.noisy, parts.spec, prefix.place, prefix.rows, {name: x}, time, far)
    encoded = model.encode(inputs, prefix.cache)
    # A time token is no part of the image: the solver must not move it, and lengths do not count it.
    return model.head(name, encoded[name]).at[:, : parts.stream.content.lead].set(0.0)


def broadcast(prefix: Prefix, rows: int) -> Prefix:
    """Repeats a prefix of one row for all rows."""

    def spread(x):
        return jnp.broadcast_to(x, (rows, *x.shape[1:]))

    cache = prefix.cache
    k, v = jax.tree.map(lambda x: jnp.tile(x, (rows, 1, 1)), (cache.k, cache.v))
    cache = KeyValues(k, v, jax.tree.map(spread, cache.metadata))
    return Prefix(cache, *jax.tree.map(spread, (prefix.place, prefix.rows)))


@dataclasses.dataclass(frozen=True)
class Request:
    """One image to be drawn for each row that waits for it.

    Attributes:
      model: compiled for the loops.
      objectives: the settings of the task's objectives.
      solver: a key of `transfusion.sampling.solvers.SOLVERS`.
      filters: which codes may be drawn.
      prefix: the prefix after which the images are drawn.
      without_text, without_images: the same without a condition; None where it does not guide.
      guidance: the guidance by the text and by the images.
      schedule: the arrays made of the config, see `transfusion.sampling.drawing.Drawing`.
      keys: the keys of the rows [B].
      drawn: the number of this image in its row, int32 [B].
    """

    model: UnifiedModel
    objectives: ObjectivesConfig
    solver: str
    filters: Filters
    prefix: Prefix
    without_text: Prefix | None
    without_images: Prefix | None
    guidance: Guidance
    schedule: Any
    keys: jax.Array
    drawn: jax.Array

    def guided(self, t: jax.Array, predict: Callable[[Prefix], jax.Array]) -> jax.Array:
        """Guides the result of `predict` after the prefix by those after the others, at the time t (scalar)."""
        predicted = predict(self.prefix)
        if self.without_text is None:
            return predicted

        def after(prefix):
            return None if prefix is None else lambda: predict(prefix)

        return self.guidance.predict(t, predicted, after(self.without_text), after(self.without_images))
