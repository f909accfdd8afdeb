"""Solvers from noise (t = 0) to data (t = 1). One method each; any path and prediction, through `Estimates`.

A solver sees the model as a field: `field(x, t) -> Estimates` of x's shape at the time t of all rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.objectives.paths import Estimates, Path, shift_time

Field = Callable[[jax.Array, jax.Array], Estimates]
Noise = Callable[[], jax.Array]

# A noise prediction says nothing of the data at t = 0, where alpha is 0 and the data estimate a division by it.
NOISE_START = 1e-2


class Solver(Protocol):
    """`step` goes from t to s > t: x [B, ...] -> (x at s, estimate of the data at t); `noise()` is fresh."""

    def step(
        self, field: Field, path: Path, x: jax.Array, t: jax.Array, s: jax.Array, noise: Noise
    ) -> tuple[jax.Array, jax.Array]: ...

    def evaluations(self, steps: int) -> int: ...


def time_grid(steps: int, shift: float = 1.0, prediction: str = "velocity") -> np.ndarray:
    """Times float32 [steps + 1] from 0 (noise prediction: `NOISE_START`) to 1, moved towards noise by `shift`."""
    start = NOISE_START if prediction == "noise" else 0.0
    grid = start + (1 - start) * shift_time(np.linspace(0.0, 1.0, steps + 1), shift)
    return grid.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Euler:
    """First order; one evaluation a step."""

    def step(self, field, path, x, t, s, noise):
        now = field(x, t)
        return x + (s - t) * now.velocity, now.data

    def evaluations(self, steps: int) -> int:
        return steps


@dataclasses.dataclass(frozen=True)
class Heun:
    """Second order; two evaluations a step, one in the last (EDM, arXiv 2206.00364, algorithm 1).

    The last step is Euler's because no path defines all three estimates at t = 1; one such step keeps the order.
    """

    def step(self, field, path, x, t, s, noise):
        now = field(x, t)
        guess = x + (s - t) * now.velocity
        velocity = jax.lax.cond(s < 1, lambda: (now.velocity + field(guess, s).velocity) / 2, lambda: now.velocity)
        return x + (s - t) * velocity, now.data

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Mixes the estimated data and noise anew (arXiv 2010.02502, equation 12 with sigma = 0); one evaluation a step.

    On the linear path it is Euler.
    """

    def step(self, field, path, x, t, s, noise):
        now = field(x, t)
        return path.alpha(s) * now.data + path.sigma(s) * now.noise, now.data

    def evaluations(self, steps: int) -> int:
        return steps


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ancestral sampling: draws x_s from q(x_s | x_t, data); one evaluation a step.

    DDPM (arXiv 2006.11239, equations 6 and 7), written for any path as in VDM (arXiv 2107.00630, section 3.2), with the
    variance of the posterior.
    """

    def step(self, field, path, x, t, s, noise):
        now = field(x, t)
        mean, std = posterior(path, x, now.data, t, s)
        return mean + std * noise(), now.data

    def evaluations(self, steps: int) -> int:
        return steps


def posterior(path: Path, x: jax.Array, data: jax.Array, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean (like x) and standard deviation (scalar) of q(x_s | x_t = x, data) for s > t."""
    ratio = path.alpha(t) / path.alpha(s)
    # The variance that x_t has beyond the scaled x_s.
    added = path.sigma(t) ** 2 - ratio**2 * path.sigma(s) ** 2
    total = path.sigma(t) ** 2
    mean = (ratio * path.sigma(s) ** 2 * x + path.alpha(s) * added * data) / total
    return mean, jnp.sqrt(jnp.maximum(added, 0) / total) * path.sigma(s)


SOLVERS: dict[str, Solver] = {"euler": Euler(), "heun": Heun(), "ddim": DDIM(), "ddpm": DDPM()}
