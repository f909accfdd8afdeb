"""Drawing one image per row: a table from the objective of the drawn stream to the way in which it is drawn.

Shape letters: B rows, N tokens of an image, E numbers of a patch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import PATHS, estimates
from transfusion.sampling import codes
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.job import Job, predict
from transfusion.sampling.layout import Layout
from transfusion.sampling.solvers import SOLVERS
from transfusion.sampling.state import first_noise, step_noise
from transfusion.sequence.rows import unpatchify


@dataclasses.dataclass(frozen=True)
class Drawing:
    """`plan(objectives, layout, config)` -> arrays that may change without compiling anew; `draw(job)` -> what the
    tokens of the images hold, patches [B, N, E] or ids [B, N]; `words`: for people, of a config."""

    plan: Callable[[ObjectivesConfig, Layout, SamplerConfig], Any]
    draw: Callable[[Job], jax.Array]
    words: str


def times(objectives: ObjectivesConfig, layout: Layout, config: SamplerConfig) -> np.ndarray:
    """The solver's time grid [steps + 1]."""
    prediction = objectives.of_continuous(layout.run.stream).prediction
    return config.times(prediction, layout.tokens - layout.stream.time_tokens)


def solve(job: Job, record: bool = False) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """Draws images [B, N, E] by a solver; the plan is its `times`.

    With `record` x_t and the data estimates of all steps are returned too, [steps, B, N, E] each.
    """
    layout, solver = job.layout, SOLVERS[job.solver]
    config = job.objectives.of_continuous(layout.run.stream)
    path, shape = PATHS[config.path], layout.content.shape

    def field(x, t):
        predicted = job.guided(t, lambda prefix: predict(job.model, layout, prefix, x, t))
        return estimates(path, config.prediction, t, x, predicted)

    def step(x, scanned):
        number, t, s = scanned
        after, data = solver.step(field, path, x, t, s, lambda: step_noise(job.keys, job.drawn, number, shape))
        return after, ((x, data) if record else None)

    steps = jnp.arange(len(job.plan) - 1)
    noise = first_noise(job.keys, job.drawn, shape)
    return jax.lax.scan(step, noise, (steps, job.plan[:-1], job.plan[1:]))


def latents_of(layout: Layout, patches: np.ndarray) -> np.ndarray:
    """Patches [..., N, E] to latents [..., *sides, C], or ids [..., N] to codes."""
    if layout.stream.discrete:
        return patches[..., layout.stream.lead_tokens :].reshape(*patches.shape[:-1], *layout.shape)
    patches = patches[..., layout.stream.time_tokens :, :]
    return np.asarray(unpatchify(patches, layout.shape[:-1], layout.stream.patch_sides))


DRAWINGS: dict[str, Drawing] = {
    "continuous": Drawing(times, lambda job: solve(job)[0], "{config.solver}, {config.steps} steps"),
    "masked": Drawing(codes.unmask_plan, codes.unmask, "{config.steps} steps of unmasking"),
    "next_token": Drawing(codes.plan, codes.one_after_another, "Code by code"),
    "next_scale": Drawing(codes.plan, codes.scale_by_scale, "Scale by scale"),
}
