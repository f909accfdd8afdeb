"""The request for an image: the prefix after which it is drawn, and code that all ways of drawing share.

Shape letters: B rows, N tokens of an image, E numbers of a patch, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
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
from transfusion.sampling.settings import Machine


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

    return Prefix(prefix.cache.of_rows(spread), *jax.tree.map(spread, (prefix.place, prefix.rows)))


def interleaved(*parts: jax.Array) -> jax.Array:
    """Joins n arrays [B, ...] to one [B n, ...], in which the n rows of the same number stand together.

    So rows that are split over devices stay where they are."""
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


def side_by_side(prefixes: Sequence[Prefix]) -> Prefix:
    """Joins prefixes of the same B rows to one of more rows, see `interleaved`; their caches get as many slots."""
    slots = max(p.cache.metadata.order.shape[1] for p in prefixes)
    first, *others = (p.cache.grown(slots - p.cache.metadata.order.shape[1]) for p in prefixes)
    cache = first.of_rows(interleaved, *others)
    return Prefix(cache, *jax.tree.map(interleaved, *((p.place, p.rows) for p in prefixes)))


@dataclasses.dataclass(frozen=True)
class Request:
    """One image to be drawn for each row that waits for it.

    Attributes:
      model: compiled for the loops.
      objectives: the settings of the task's objectives.
      solver: a key of `transfusion.sampling.solvers.SOLVERS`.
      filters: which codes may be drawn.
      prefixes: the prefix after which the images are drawn, and the same without conditions: without the text, if
        anything guides, and then without each kind of media that guides.
      guidance: the guidance by the text and by these kinds.
      schedule: the arrays made of the config, see `transfusion.sampling.drawing.Drawing`.
      keys: the keys of the rows [B].
      drawn: the number of this image in its row, int32 [B].
      machine: how the loops are compiled.
    """

    model: UnifiedModel
    objectives: ObjectivesConfig
    solver: str
    filters: Filters
    prefixes: tuple[Prefix, ...]
    guidance: Guidance
    schedule: Any
    keys: jax.Array
    drawn: jax.Array
    machine: Machine

    @cached_property
    def joined(self) -> Prefix:
        """All prefixes as one, see `side_by_side`; make it outside the loops."""
        return self.prefixes[0] if len(self.prefixes) == 1 else side_by_side(self.prefixes)

    def repeated(self, x: jax.Array) -> jax.Array:
        """Repeats an array [B, ...] for the rows of `joined`."""
        return jnp.repeat(x, len(self.prefixes), axis=0)

    def split(self, x: jax.Array) -> list[jax.Array]:
        """Splits an array over the rows of `joined` into one [B, ...] for each prefix."""
        n = len(self.prefixes)
        return [x[i::n] for i in range(n)]

    def guided(self, parts: PaintedParts) -> Callable[..., jax.Array]:
        """Makes the function of x [B, N, E], t and `ahead` that computes the guided prediction [B, N, E].

        `t` and `ahead` are scalars as in `predict`. Make the function outside the loops."""
        first, *others = self.prefixes

        def after(prefix: Prefix, *given: jax.Array | None) -> jax.Array:
            return predict(self.model, parts, prefix, *given)

        def one_by_one(x: jax.Array, t: jax.Array, ahead: jax.Array | None = None) -> jax.Array:
            rest = (partial(after, prefix, x, t, ahead) for prefix in others)
            return self.guidance.predict(t, after(first, x, t, ahead), *rest)

        def all_at_once(x: jax.Array, t: jax.Array, ahead: jax.Array | None = None) -> jax.Array:
            def guided():
                return self.guidance.combine(*self.split(after(joined, self.repeated(x), t, ahead)))

            return jax.lax.cond(self.guidance.applies(t), guided, lambda: after(first, x, t, ahead))

        if not others:
            return partial(after, first)
        if len(first.rows) > self.machine.together:
            return one_by_one
        joined = self.joined
        return all_at_once
