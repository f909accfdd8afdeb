"""Solvers go from noise (t = 0) to data (t = 1). Through `Estimates` each works with any path and prediction.

A solver sees the model as a field: `field(x, t) -> Estimates` of x's shape at the time t of all rows. A model of mean
velocities also has `field(x, t, ahead)`, see `transfusion.objectives.ahead`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.objectives.paths import STEPS, Estimates, Path, shift_time
from transfusion.sequence.arrays import Array, Float

Field = Callable[..., Estimates]
Noise = Callable[[], jax.Array]
Memory = Any  # a pytree of arrays of one structure
Scalar = Float[Array, ""] | np.floating | float
Noised = Float[Array, "*X"]

# A noise prediction says nothing about the data at t = 0, where the data estimate would divide by alpha = 0.
NOISE_START = 1e-2


class Solver(Protocol):
    """A solver goes from noise to data in steps, from t to s > t each.

    A solver may remember what its earlier steps have found (a multistep method does): `first_memory` makes it for
    noise x [B, ...], and each step takes and returns it. `step` returns x at s, the estimate of the data at t, and the
    memory; `noise()` is fresh.
    """

    def first_memory(self, x: jax.Array) -> Memory: ...

    def step(
        self, field: Field, path: Path, x: Noised, t: Scalar, s: Scalar, noise: Noise, memory: Memory
    ) -> tuple[Noised, Noised, Memory]: ...

    def evaluations(self, steps: int) -> int: ...


class OneStep:
    """A solver that remembers nothing."""

    def first_memory(self, x: jax.Array) -> Memory:
        del x
        return ()


Spacing = Callable[[int, float], np.ndarray]

# Times t float64 [steps] of the evaluations, rising from noise, before `time_grid` shifts them. Of those which name no
# paper, BAGEL and the SD3 paper use the first, diffusers' flow matching schedulers the second and third.
SPACINGS: dict[str, Spacing] = {
    "even": lambda steps, shift: np.linspace(0, 1, steps + 1)[:-1],
    # Evenly down to the least of `STEPS` noise levels, and from there in one step to the data.
    "to_last_level": lambda steps, shift: np.linspace(0, 1 - 1 / STEPS, steps),
    # The same to that level once shifted, so that the end is shifted twice.
    "shifted_twice": lambda steps, shift: np.linspace(0, shift_time(1 - 1 / STEPS, shift), steps),
    # Of DDPM's steps 0 to 999 (arXiv 2305.08891, section 3.3 and table 2): every k-th from 0 on, which leaves out the
    # last ones, and every k-th from the last one on.
    "leading": lambda steps, shift: 1 - (np.arange(steps)[::-1] * (STEPS // steps) + 1) / STEPS,
    "trailing": lambda steps, shift: 1 - np.round(STEPS - np.arange(steps) * STEPS / steps) / STEPS,
}


def time_grid(
    steps: int, shift: float = 1.0, prediction: str = "velocity", spacing: str = "even", terminal: float = 0.0
) -> Float[np.ndarray, "{steps}+1"]:
    """Makes the times float32 [steps + 1] from 0 (noise prediction: at least `NOISE_START`) to 1.

    Args:
      steps: number of the solver's steps.
      shift: moves the times towards noise, see `transfusion.objectives.paths.shift_time`.
      prediction: the quantity that the model predicts.
      spacing: a key of `SPACINGS`.
      terminal: the noise level 1 - t of the last evaluation, to which the grid is stretched; 0 leaves it.
    """
    grid = shift_time(SPACINGS[spacing](steps, shift), shift)
    if terminal and grid[-1] > 0:
        grid = grid * (1 - terminal) / grid[-1]
    grid = np.append(grid, 1.0)
    start = NOISE_START if prediction == "noise" and grid[0] < NOISE_START else 0.0
    return (start + (1 - start) * grid).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Euler(OneStep):
    """First order; one evaluation a step."""

    def step(
        self, field: Field, path: Path, x: Noised, t: Scalar, s: Scalar, noise: Noise, memory: Memory
    ) -> tuple[Noised, Noised, Memory]:
        now = field(x, t)
        return x + (s - t) * now.velocity, now.data, memory

    def evaluations(self, steps: int) -> int:
        return steps


@dataclasses.dataclass(frozen=True)
class Heun(OneStep):
    """Second order; two evaluations a step, one in the last (EDM, arXiv 2206.00364, algorithm 1).

    The last step is Euler's because no path defines all three estimates at t = 1; one such step keeps the order.
    """

    def step(
        self, field: Field, path: Path, x: Noised, t: Scalar, s: Scalar, noise: Noise, memory: Memory
    ) -> tuple[Noised, Noised, Memory]:
        now = field(x, t)
        guess = x + (s - t) * now.velocity
        velocity = jax.lax.cond(s < 1, lambda: (now.velocity + field(guess, s).velocity) / 2, lambda: now.velocity)
        return x + (s - t) * velocity, now.data, memory

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


@dataclasses.dataclass(frozen=True)
class DDIM(OneStep):
    """Mixes the estimated data and noise anew (arXiv 2010.02502, equation 12 with sigma = 0); one evaluation a step.

    On the linear path it is Euler.
    """

    def step(
        self, field: Field, path: Path, x: Noised, t: Scalar, s: Scalar, noise: Noise, memory: Memory
    ) -> tuple[Noised, Noised, Memory]:
        now = field(x, t)
        return path.alpha(s) * now.data + path.sigma(s) * now.noise, now.data, memory

    def evaluations(self, steps: int) -> int:
        return steps


@dataclasses.dataclass(frozen=True)
class DDPM(OneStep):
    """Ancestral sampling: draws x_s from q(x_s | x_t, data); one evaluation a step.

    DDPM (arXiv 2006.11239, equations 6 and 7), written for any path as in VDM (arXiv 2107.00630, section 3.2), with the
    variance of the posterior.
    """

    def step(
        self, field: Field, path: Path, x: Noised, t: Scalar, s: Scalar, noise: Noise, memory: Memory
    ) -> tuple[Noised, Noised, Memory]:
        now = field(x, t)
        mean, std = posterior(path, x, now.data, t, s)
        return mean + std * noise(), now.data, memory

    def evaluations(self, steps: int) -> int:
        return steps


@dataclasses.dataclass(frozen=True)
class Shortcut(OneStep):
    """A step of any size by the mean velocity over it; one evaluation a step.

    For models of the objectives 'shortcut' (arXiv 2410.12557, algorithm 2) and 'mean_flow' (arXiv 2505.13447, algorithm
    2), which learn it. Those of 'shortcut' know steps of 1, 1/2, 1/4 and so on.
    """

    def step(
        self, field: Field, path: Path, x: Noised, t: Scalar, s: Scalar, noise: Noise, memory: Memory
    ) -> tuple[Noised, Noised, Memory]:
        now = field(x, t, s - t)
        return x + (s - t) * now.velocity, now.data, memory

    def evaluations(self, steps: int) -> int:
        return steps


def posterior(path: Path, x: Noised, data: Noised, t: Scalar, s: Scalar) -> tuple[Noised, Scalar]:
    """Computes the mean (like x) and standard deviation (scalar) of q(x_s | x_t = x, data) for s > t."""
    ratio = path.alpha(t) / path.alpha(s)
    # The variance that x_t has beyond the scaled x_s.
    added = path.sigma(t) ** 2 - ratio**2 * path.sigma(s) ** 2
    total = path.sigma(t) ** 2
    mean = (ratio * path.sigma(s) ** 2 * x + path.alpha(s) * added * data) / total
    return mean, jnp.sqrt(jnp.maximum(added, 0) / total) * path.sigma(s)


SOLVERS: dict[str, Solver] = {"euler": Euler(), "heun": Heun(), "ddim": DDIM(), "ddpm": DDPM(), "shortcut": Shortcut()}
# Solvers whose field has a third argument, how far ahead: only models of mean velocities have it.
LOOK_AHEAD = ("shortcut",)
