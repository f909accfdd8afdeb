"""What an image is drawn after, and what all ways of drawing one share.

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
    """What an image is drawn after: the cache, where its rows stand, and which rows bool [B] draw."""

    cache: KeyValues
    place: Place
    rows: jax.Array


def read_preamble(model: UnifiedModel, parts: PaintedParts, prefix: Prefix) -> Prefix:
    """The prefix with what is computed once before the noised tokens (learned queries)."""
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


def predict(model: UnifiedModel, parts: PaintedParts, prefix: Prefix, x: jax.Array, t: jax.Array) -> jax.Array:
    """What the head says of x [B, N, E] at the time t (scalar): float32 [B, N, E]."""
    name = parts.name
    time = jnp.broadcast_to(t, x.shape[:1])
    inputs = lay(parts.noisy, parts.spec, prefix.place, prefix.rows, {name: x}, time)
    encoded = model.encode(inputs, prefix.cache)
    # A time token is no part of the image: nothing moves it, and it counts in no length.
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
      objectives: of the task.
      solver: a key of `transfusion.sampling.solvers.SOLVERS`.
      filters: which codes may be drawn.
      prefix: what the images are drawn after.
      without_text, without_images: the same without a condition; None where it does not guide.
      guidance: of the text and of the images.
      schedule: what the way of drawing has made of the config, see `transfusion.sampling.drawing.Drawing`.
      keys: of the rows [B].
      drawn: which image of its row this is, int32 [B].
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
        """What `predict` says after the prefix, guided by what it says after the others, at the time t (scalar)."""
        predicted = predict(self.prefix)
        if self.without_text is None:
            return predicted

        def after(prefix):
            return None if prefix is None else lambda: predict(prefix)

        return self.guidance.predict(t, predicted, after(self.without_text), after(self.without_images))
