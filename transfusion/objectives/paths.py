"""Noise paths and the algebra between noise, data and velocity: flow matching and DDPM are two rows of one table.

Convention of the whole library: t = 0 is noise, t = 1 is data, x_t = alpha(t) * data + sigma(t) * noise. The velocity
is dx_t/dt = alpha'(t) * data + sigma'(t) * noise. Papers with the reverse direction are converted at the border.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transfusion.errors import UsageError, nearest

Schedule = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Path:
    """alpha, sigma and their derivatives as functions of t."""

    alpha: Schedule
    sigma: Schedule
    d_alpha: Schedule
    d_sigma: Schedule


_QUARTER = jnp.pi / 2
PATHS: dict[str, Path] = {
    # Flow matching, optimal-transport path (arXiv 2210.02747, section 4.1).
    "linear": Path(lambda t: t, lambda t: 1 - t, jnp.ones_like, lambda t: -jnp.ones_like(t)),
    # DDPM with the cosine schedule as the Transfusion paper states it (section 2.2): sqrt(alpha_bar) = cos(s pi / 2)
    # at noise time s = 1 - t. Variance preserving.
    "cosine": Path(
        lambda t: jnp.sin(t * _QUARTER),
        lambda t: jnp.cos(t * _QUARTER),
        lambda t: _QUARTER * jnp.cos(t * _QUARTER),
        lambda t: -_QUARTER * jnp.sin(t * _QUARTER),
    ),
}
PREDICTIONS = ("velocity", "noise", "data")


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """How one continuous stream is trained.

    Attributes:
      path: a key of `PATHS`.
      prediction: what the head gives: 'velocity', 'noise' or 'data'.
      times: 'uniform' or 'logit_normal' (arXiv 2403.03206, section 3.1).
      mean, std: of the logit-normal.
      shift: s > 1 moves times towards noise: with s' = 1 - t, s' -> shift s' / (1 + (shift - 1) s').
    """

    path: str = "linear"
    prediction: str = "velocity"
    times: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self):
        known = {"path": PATHS, "prediction": PREDICTIONS, "times": ("uniform", "logit_normal")}
        for field, values in known.items():
            value = getattr(self, field)
            if value not in values:
                raise UsageError(
                    f"continuous.{field}: {value!r} is none of {', '.join(values)}{nearest(value, values)}"
                )
        if self.shift <= 0 or self.std <= 0:
            raise UsageError("continuous: shift and std must be positive")


def shift_time(t: jax.Array, shift: float) -> jax.Array:
    """Moves times t towards noise by the factor `shift` of the noise-to-data ratio (1 leaves them)."""
    return t / (t + shift * (1 - t))


def sample_times(key: jax.Array, shape: tuple[int, ...], config: ContinuousConfig) -> jax.Array:
    """Training times in [0, 1], float32."""
    if config.times == "uniform":
        t = jax.random.uniform(key, shape)
    else:
        t = jax.nn.sigmoid(config.mean + config.std * jax.random.normal(key, shape))
    return shift_time(t, config.shift)


@dataclasses.dataclass(frozen=True)
class Estimates:
    """The three equivalent readings of a prediction at (t, x_t); arrays of x's shape."""

    data: jax.Array
    noise: jax.Array
    velocity: jax.Array


def interpolate(path: Path, t: jax.Array, data: jax.Array, noise: jax.Array) -> jax.Array:
    """x_t; t broadcasts against the data."""
    return path.alpha(t) * data + path.sigma(t) * noise


def target(path: Path, prediction: str, t: jax.Array, data: jax.Array, noise: jax.Array) -> jax.Array:
    """What the head shall predict."""
    if prediction == "velocity":
        return path.d_alpha(t) * data + path.d_sigma(t) * noise
    return {"noise": noise, "data": data}[prediction]


def estimates(path: Path, prediction: str, t: jax.Array, x: jax.Array, predicted: jax.Array) -> Estimates:
    """Solves x = alpha data + sigma noise with the predicted quantity for the other two.

    Denominators are kept away from 0 (noise prediction at t = 0, data prediction at t = 1), where the missing quantity
    cannot be known from x.
    """
    alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    tiny = 1e-4
    if prediction == "velocity":
        # alpha d_sigma - sigma d_alpha is -1 on the linear path and -pi/2 on the cosine path: never 0.
        determinant = alpha * d_sigma - sigma * d_alpha
        data = (d_sigma * x - sigma * predicted) / determinant
        noise = (alpha * predicted - d_alpha * x) / determinant
        return Estimates(data, noise, predicted)
    if prediction == "noise":
        data, noise = (x - sigma * predicted) / jnp.maximum(alpha, tiny), predicted
    else:
        data, noise = predicted, (x - alpha * predicted) / jnp.maximum(sigma, tiny)
    return Estimates(data, noise, d_alpha * data + d_sigma * noise)
