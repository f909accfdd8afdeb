"""Drawing one image per row: a solver over the image's tokens against the cached prefix.

Shape letters: B rows, N tokens of an image, E numbers of a patch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.cache import KeyValues
from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import PATHS, ContinuousConfig, estimates
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.guidance import Guidance
from transfusion.sampling.layout import Layout, Place, lay
from transfusion.sampling.solvers import Field, Solver
from transfusion.sampling.state import first_noise, step_noise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What an image is drawn after: the cache, where its rows stand, and which rows bool [B] draw."""

    cache: KeyValues
    place: Place
    rows: jax.Array


def times(objectives: ObjectivesConfig, layout: Layout, config: SamplerConfig) -> np.ndarray:
    """The solver's time grid [steps + 1]."""
    prediction = objectives.of_continuous(layout.run.stream).prediction
    return config.times(prediction, layout.tokens - layout.stream.time_tokens)


def begin(model: UnifiedModel, layout: Layout, prefix: Prefix) -> Prefix:
    """The prefix with what is computed once before the noised tokens: learned queries."""
    part = layout.before
    if not part.length:
        return prefix
    rows, used = prefix.rows, prefix.cache.metadata.order.shape[1]
    inputs = lay(part, layout.spec, prefix.place, rows, {}, jnp.ones(len(rows)))
    slots = {}
    for name, piece in inputs.items():
        b, n = piece.metadata.order.shape
        slots[name] = jnp.broadcast_to(used + jnp.arange(n), (b, n))
        used += n
    cache = prefix.cache.grown(used - prefix.cache.metadata.order.shape[1])
    return Prefix(model.encode(inputs, cache=cache, slots=slots)[1], prefix.place.after(part, rows), rows)


def predict(model: UnifiedModel, layout: Layout, prefix: Prefix, x: jax.Array, t: jax.Array) -> jax.Array:
    """What the head says of x [B, N, E] at the time t (scalar): float32 [B, N, E]."""
    name = layout.run.stream
    time = jnp.broadcast_to(t, x.shape[:1])
    inputs = lay(layout.noisy, layout.spec, prefix.place, prefix.rows, {name: x}, time)
    encoded, _ = model.encode(inputs, cache=prefix.cache)
    # A time token is no part of the image: nothing moves it, and it counts in no length.
    return model.head(name, encoded[name]).at[:, : layout.stream.time_tokens].set(0.0)


def make_field(
    model: UnifiedModel,
    layout: Layout,
    config: ContinuousConfig,
    prefix: Prefix,
    without_text: Prefix | None,
    without_images: Prefix | None,
    guidance: Guidance,
) -> Field:
    """The solver's view of the model; the last two prefixes lack a condition, None where it does not guide."""

    def field(x, t):
        def after(prefix):
            return None if prefix is None else lambda: predict(model, layout, prefix, x, t)

        predicted = after(prefix)()
        if without_text is not None:
            predicted = guidance.predict(t, predicted, after(without_text), after(without_images))
        return estimates(PATHS[config.path], config.prediction, t, x, predicted)

    return field


def broadcast(prefix: Prefix, rows: int) -> Prefix:
    """A prefix of one row, for all rows."""

    def spread(x):
        return jnp.broadcast_to(x, (rows, *x.shape[1:]))

    cache = prefix.cache
    k, v = jax.tree.map(lambda x: jnp.tile(x, (rows, 1, 1)), (cache.k, cache.v))
    cache = KeyValues(k, v, jax.tree.map(spread, cache.metadata))
    return Prefix(cache, *jax.tree.map(spread, (prefix.place, prefix.rows)))


def solve(
    field: Field,
    solver: Solver,
    config: ContinuousConfig,
    times: jax.Array,
    keys: jax.Array,
    drawn: jax.Array,
    shape: tuple[int, int],
    record: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """Draws images [B, N, E].

    Args:
      field: the model.
      solver, config: how.
      times: [steps + 1].
      keys: of the rows [B].
      drawn: which image of its row this is, int32 [B].
      shape: N, E.
      record: whether to return x_t and the data estimates of all steps too, [steps, B, N, E] each.
    """
    path = PATHS[config.path]

    def step(x, scanned):
        number, t, s = scanned
        after, data = solver.step(field, path, x, t, s, lambda: step_noise(keys, drawn, number, shape))
        return after, ((x, data) if record else None)

    steps = jnp.arange(len(times) - 1)
    return jax.lax.scan(step, first_noise(keys, drawn, shape), (steps, times[:-1], times[1:]))
