"""Drawing patches each of which a small network denoises by itself: in raster order, or hidden ones in a random order.

Shape letters: B rows, N tokens of an image, n of a part of them, E numbers of a patch, D width of the trunk.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transfusion.objectives.paths import PATHS, estimates
from transfusion.sampling.codes import read_codes, with_room
from transfusion.sampling.parts import PaintedParts
from transfusion.sampling.request import Request, predict
from transfusion.sampling.solvers import SOLVERS
from transfusion.sampling.state import step_keys, step_noise


def solved(request: Request, parts: PaintedParts, times: jax.Array, hidden: jax.Array, number: jax.Array) -> jax.Array:
    """Draws patches [B, n, E] by a solver.

    Guidance compares what the head makes of the trunk's outputs after each prefix.

    Args:
      times: the solver's grid.
      hidden: the trunk's outputs [B prefixes, n, D] for these patches.
      number: how often patches of this image have been drawn before, from which their noise follows.
    """
    solver, guidance, head = SOLVERS[request.solver], request.guidance, request.model.head_of(parts.name)
    config, n = request.objectives.of_continuous(parts.name), parts.tokens
    path, shape = PATHS[config.path], (hidden.shape[1], parts.held.shape[-1])

    def field(x, t, ahead=None):
        time = jnp.broadcast_to(t, hidden.shape[:2])
        first, *others = request.split(head.velocity(hidden, request.repeated(x), time))
        v = jnp.where(guidance.applies(t), guidance.combine(first, *others), first) if others else first
        return estimates(path, config.prediction, t, x, v)

    def step(carry, scanned):
        x, memory = carry
        i, t, s = scanned
        noise = lambda: step_noise(request.keys, request.drawn, n + number * len(times) + i, shape)  # noqa: E731
        x, _, memory = solver.step(field, path, x, t, s, noise, memory)
        return (x, memory), None

    noise = step_noise(request.keys, request.drawn, number, shape)
    scanned = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    return jax.lax.scan(step, (noise, solver.first_memory(noise)), scanned)[0][0]


def one_after_another(request: Request, parts: PaintedParts) -> jax.Array:
    """Draws patches [B, N, E] in raster order, given those before them (NextStep-1); the trunk reads each once."""
    n, e = parts.held.shape

    def draw(i, carry):
        x, prefix = carry
        content = request.repeated(jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1))
        hidden, prefix = read_codes(request, parts, prefix, content, i, 1)
        patch = solved(request, parts, request.schedule, hidden, i)
        return jax.lax.dynamic_update_slice_in_dim(x, patch, i + 1, axis=1), prefix

    x = jnp.zeros((len(request.keys), n, e))
    return jax.lax.fori_loop(0, n - 1, draw, (x, with_room(request, parts)))[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RevealSchedule:
    """How hidden patches are revealed.

    Attributes:
      times: the solver's grid [steps + 1].
      left: int32, how many patches are still hidden after each step of revealing.
    """

    times: jax.Array
    left: jax.Array


def reveal(request: Request, parts: PaintedParts) -> jax.Array:
    """Draws patches [B, N, E] in a random order, several at once, given all that are known (MAR, section 3.3).

    The trunk runs once in each step, and the small network denoises all patches, of which those that are next in the
    order are kept."""
    schedule, joined, shape = request.schedule, request.joined, parts.held.shape
    order_keys = step_keys(request.keys, request.drawn, jnp.int32(2 * parts.tokens * (len(schedule.times) + 1)))
    order = jax.vmap(lambda key: jax.random.permutation(key, parts.tokens))(order_keys)

    def step(x, scanned):
        number, left = scanned
        hidden = predict(request.model, parts, joined, request.repeated(x), jnp.float32(1.0))
        patches = solved(request, parts, schedule.times, hidden, number)
        return jnp.where(jnp.isnan(x) & (order >= left)[..., None], patches, x), None

    x = jnp.full((len(request.keys), *shape), jnp.nan)
    return jax.lax.scan(step, x, (jnp.arange(len(schedule.left)), schedule.left))[0]
