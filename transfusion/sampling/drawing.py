"""Drawing one image per row: a table from the objective of the drawn stream to the way in which it is drawn.

Shape letters: B rows, N tokens of an image, E numbers of a patch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.masked import still_masked
from transfusion.objectives.paths import PATHS, estimates
from transfusion.sampling import codes, token_flows
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.parts import PaintedParts
from transfusion.sampling.request import Request
from transfusion.sampling.solvers import LOOK_AHEAD, SOLVERS
from transfusion.sampling.state import first_noise, step_noise
from transfusion.sequence.times import AHEAD

Drawn = jax.Array  # what the tokens of the images hold: patches [B, N, E] or ids [B, N]
# The same, with x_t and the estimate of the data at all steps, [steps, B, N, E] each.
Recorded = tuple[Drawn, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The way in which streams of an objective draw.

    Attributes:
      schedule: turns a config into the arrays that may change without compiling anew.
      draw: draws one image for each row of a request.
      words: describes a config's drawing to people.
      record: draws like `draw` and also returns the states that the images pass through; None where images do not
        begin as noise.
    """

    schedule: Callable[[ObjectivesConfig, PaintedParts, SamplerConfig], Any]
    draw: Callable[[Request, PaintedParts], Drawn]
    words: str
    record: Callable[[Request, PaintedParts], Recorded] | None = None


def times(objectives: ObjectivesConfig, parts: PaintedParts, config: SamplerConfig) -> np.ndarray:
    """Makes the solver's time grid [steps + 1].

    Raises:
      UsageError: if the solver needs mean velocities, and the model has learned none.
    """
    if config.solver in LOOK_AHEAD and not parts.stream.ahead:
        raise UsageError(
            f"sampling.solver={config.solver!r} is for models that were trained by one of the objectives "
            f"{', '.join(AHEAD)}, not by {parts.stream.objective!r}: choose another solver, such as 'euler'"
        )
    prediction = objectives.of_continuous(parts.name).prediction
    return config.times(prediction, parts.tokens - parts.stream.content.lead)


def solve(request: Request, parts: PaintedParts) -> Drawn:
    """Draws images [B, N, E] by a solver; the schedule is its `times`."""
    return _solve(request, parts, lambda x, data: None)[0]


def solve_recorded(request: Request, parts: PaintedParts) -> Recorded:
    """Draws the same images, and also returns x_t and the data estimates of all steps."""
    return _solve(request, parts, lambda x, data: (x, data))


def _solve(request: Request, parts: PaintedParts, kept: Callable[[jax.Array, jax.Array], Any]) -> tuple[Drawn, Any]:
    """Draws the images, and returns the values of `kept` at each step."""
    solver, schedule = SOLVERS[request.solver], request.schedule
    config = request.objectives.of_continuous(parts.name)
    path, shape = PATHS[config.path], parts.held.shape

    guided = request.guided(parts)

    def field(x, t, ahead=None):
        return estimates(path, config.prediction, t, x, guided(x, t, ahead))

    def step(carry, scanned):
        (x, memory), (number, t, s) = carry, scanned
        noise = lambda: step_noise(request.keys, request.drawn, number, shape)  # noqa: E731
        after, data, memory = solver.step(field, path, x, t, s, noise, memory)
        return (after, memory), kept(x, data)

    steps = jnp.arange(len(schedule) - 1)
    noise = first_noise(request.keys, request.drawn, shape)
    (x, _), path_taken = jax.lax.scan(step, (noise, solver.first_memory(noise)), (steps, schedule[:-1], schedule[1:]))
    return x, path_taken


def reveal_schedule(
    objectives: ObjectivesConfig, parts: PaintedParts, config: SamplerConfig
) -> token_flows.RevealSchedule:
    """Makes the schedule of revealing hidden patches."""
    left = still_masked(parts.tokens, config.unmask_steps or parts.tokens, objectives.masked.schedule)
    return token_flows.RevealSchedule(times(objectives, parts, config), left.astype(np.int32))


DRAWINGS: dict[str, Drawing] = {
    "continuous": Drawing(times, solve, "{config.solver}, {config.steps} steps", solve_recorded),
    **dict.fromkeys(AHEAD, Drawing(times, solve, "{config.solver}, {config.steps} steps", solve_recorded)),
    "token_flow": Drawing(
        times, token_flows.one_after_another, "Token by token, {config.solver}, {config.steps} steps each"
    ),
    "masked_flow": Drawing(
        reveal_schedule, token_flows.reveal, "In a random order, {config.solver}, {config.steps} steps each"
    ),
    "masked": Drawing(codes.unmask_schedule, codes.unmask, "{config.steps} steps of unmasking"),
    "next_token": Drawing(codes.code_schedule, codes.one_after_another, "Code by code"),
    "next_scale": Drawing(codes.code_schedule, codes.scale_by_scale, "Scale by scale"),
}
