"""Noise paths and the algebra between noise, data and velocity: flow matching and DDPM are two rows of one table.

Convention of the whole library: t = 0 is noise, t = 1 is data, x_t = alpha(t) * data + sigma(t) * noise. The velocity
is dx_t/dt = alpha'(t) * data + sigma'(t) * noise. Papers with the reverse direction are converted at the border.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError, check
from transfusion.sequence.arrays import Array, Float

OfTime = Callable[[jax.Array], jax.Array]
Times = Float[Array, "*#X"] | np.floating | float  # one for all, or with an axis of length one in place of some


@dataclasses.dataclass(frozen=True)
class Path:
    """A noise path: alpha, sigma and their derivatives as functions of t."""

    alpha: OfTime
    sigma: OfTime
    d_alpha: OfTime
    d_sigma: OfTime


STEPS = 1000  # of the discrete DDPM schedules


def cosine_betas(steps: int = STEPS) -> Float[np.ndarray, "{steps}"]:
    """The betas float64 [steps] of the cosine schedule (arXiv 2102.09672, section 3.2), none above 0.999."""
    edges = np.arange(steps + 1) / steps
    alpha_bar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def signal(betas: Float[np.ndarray, "steps"], zero_snr: bool = False) -> Float[np.ndarray, "steps"]:
    """Computes sqrt(alpha_bar) float64 [steps], the signal left after each noise step, from betas [steps].

    `zero_snr` shifts and scales it so that the last step leaves no signal (arXiv 2305.08891, algorithm 1).
    """
    root = np.sqrt(np.cumprod(1 - betas))
    return (root - root[-1]) * root[0] / (root[0] - root[-1]) if zero_snr else root


def discrete(betas: Float[np.ndarray, "steps"], zero_snr: bool = False) -> Path:
    """The path through K steps of DDPM noise (arXiv 2006.11239, section 2): t = 1 - (n + 1) / K after step n = 0..K-1.

    Between the steps alpha and sigma are interpolated linearly; t = 1 is the clean data.
    """
    root = np.append(signal(betas, zero_snr)[::-1], 1.0)
    steps = len(betas)

    def schedule(values):
        table = values.astype(np.float32)
        slopes = np.diff(table) * steps

        def before(t):
            return jnp.clip(jnp.floor(t * steps), 0, steps - 1).astype(jnp.int32)

        def value(t):
            i = before(t)
            part = t * steps - i
            return jnp.asarray(table)[i] * (1 - part) + jnp.asarray(table)[i + 1] * part

        return value, lambda t: jnp.asarray(slopes)[before(t)]

    alpha, d_alpha = schedule(root)
    sigma, d_sigma = schedule(np.sqrt(1 - root**2))
    return Path(alpha, sigma, d_alpha, d_sigma)


BETAS: dict[str, np.ndarray] = {
    "ddpm_cosine": cosine_betas(),
    # DDPM (arXiv 2006.11239, section 4); DiT.
    "ddpm_linear": np.linspace(1e-4, 0.02, STEPS),
    # Latent diffusion (arXiv 2112.10752) and Stable Diffusion: linear in the square root.
    "ddpm_scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2,
}
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
    **{name: discrete(betas) for name, betas in BETAS.items()},
    **{f"{name}_zero_snr": discrete(betas, zero_snr=True) for name, betas in BETAS.items()},
}
# 'v' is alpha noise - sigma data (arXiv 2202.00512, section 4), known at both ends of a variance-preserving path.
PREDICTED = ("velocity", "v", "noise", "data")


@dataclasses.dataclass(frozen=True)
class Density:
    """How training times are drawn: `times(draw(key, shape), config)`, before the shift."""

    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    times: Callable[[jax.Array, "ContinuousConfig"], jax.Array]


# Stable Diffusion 3 (arXiv 2403.03206, section 3.1), whose t is our 1 - t.
DENSITIES: dict[str, Density] = {
    "uniform": Density(jax.random.uniform, lambda u, config: u),
    "logit_normal": Density(jax.random.normal, lambda n, config: jax.nn.sigmoid(config.mean + config.std * n)),
    "mode": Density(
        jax.random.uniform, lambda u, config: u + config.mode_scale * (jnp.square(jnp.cos(u * _QUARTER)) - 1 + u)
    ),
    "cosmap": Density(jax.random.uniform, lambda u, config: 1 / (jnp.tan(u * _QUARTER) + 1)),
}

# Factors of the loss at the time t; the densities' counterparts, for times that are drawn evenly.
WEIGHTINGS: dict[str, OfTime] = {
    "none": jnp.ones_like,
    # The squared inverse of the noise level, which is not taken below one of `STEPS` levels.
    "inverse_square": lambda t: jnp.maximum(1 - t, 1 / STEPS) ** -2,
    # The density of 'cosmap' (arXiv 2403.03206, section 3.1).
    "cosmap": lambda t: 2 / (jnp.pi * (1 - 2 * t + 2 * t**2)),
}


@dataclasses.dataclass(frozen=True)
class AheadConfig:
    """Which items of a step learn a mean velocity, see `transfusion.objectives.ahead`.

    Attributes:
      share: of the rows, whose drawn items all do; it is rounded to 1 / n, for every n-th row. 0 is none.
      levels: 'shortcut' has steps of 1, 1/2, ... 1/2^(levels - 1).
      guidance: scale of the guidance by the words that mean velocities learn, so that sampling needs none. The velocity
        itself learns none. It compares with documents without words, as `data.drop_caption` makes them.
      power: p of the weight 1 / (error + 0.001)^p of an item's loss (MeanFlow, arXiv 2505.13447, section 4.3, has 1):
        with 1 items count alike, however large their errors are. 0 is no weight.
    """

    share: float = 0.25
    levels: int = 5
    guidance: float = 1.0
    power: float = 0.0

    @property
    def every(self) -> int:
        """Every n-th row."""
        return max(round(1 / self.share), 1) if self.share else 1


BASE_TOKENS = 256
# Each row computes the shift of an item of `tokens` tokens, a number or an array, from `shift`, the shift of one of
# `base` tokens; `xp` is the module of its functions, math or jax.numpy.
SHIFTS: dict[str, Callable[..., Any]] = {
    "constant": lambda shift, tokens, base=BASE_TOKENS, xp=math: shift,
    # Stable Diffusion 3 (arXiv 2403.03206, section 5.3.2, equation 23).
    "resolution": lambda shift, tokens, base=BASE_TOKENS, xp=math: shift * xp.sqrt(tokens / base),
    # FLUX.1: log shift rises from 0.5 at `base` tokens, 256, to 1.15 at 4096, on a line; `shift` multiplies it.
    "flux": lambda shift, tokens, base=BASE_TOKENS, xp=math: (
        shift * xp.exp(0.5 + (tokens - base) * (1.15 - 0.5) / (4096 - BASE_TOKENS))
    ),
}


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """How one continuous stream is trained.

    Attributes:
      path: a key of `PATHS`.
      prediction: the quantity that the head predicts, one of `PREDICTED`.
      times: a key of `DENSITIES`.
      mean, std: mean and standard deviation of the logit-normal density.
      shift: s > 1 moves times towards noise: with s' = 1 - t, s' -> shift s' / (1 + (shift - 1) s').
      shift_by: a key of `SHIFTS`: how the shift of an item depends on the number of its tokens.
      shift_tokens: the number of tokens of an item whose shift is `shift`.
      mode_scale: scale of the density 'mode', in [-1, 1.75]; 0 is uniform.
      weighting: a key of `WEIGHTINGS`, the factor of the loss.
      ahead: the settings of mean velocities, for the objectives that have them.
    """

    path: str = "linear"
    prediction: str = "velocity"
    times: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    mode_scale: float = 1.29
    weighting: str = "none"
    ahead: AheadConfig = AheadConfig()
    shift_by: str = "constant"
    shift_tokens: int = BASE_TOKENS

    def __post_init__(self):
        known = {"path": PATHS, "prediction": PREDICTED, "times": DENSITIES, "weighting": WEIGHTINGS}
        known |= {"shift_by": SHIFTS}
        for field, values in known.items():
            check(f"continuous.{field}", getattr(self, field), values)
        if self.shift <= 0 or self.std <= 0:
            raise UsageError("continuous: shift and std must be positive")
        if self.shift_tokens < 1:
            raise UsageError(f"continuous.shift_tokens: {self.shift_tokens} is not positive")
        # Beyond these limits the density 'mode' would give times outside of [0, 1].
        if not -1 <= self.mode_scale <= 2 / (np.pi - 2):
            raise UsageError(f"continuous.mode_scale: {self.mode_scale} is not in [-1, 1.75]")


def shift_time(t: Float[Array, "..."] | float, shift: Float[Array, "..."] | float) -> Float[Array, "..."] | float:
    """Moves times t towards noise by the factor `shift` of the noise-to-data ratio (1 leaves them)."""
    return t / (t + shift * (1 - t))


def sample_times(
    key: jax.Array, shape: tuple[int, ...], config: ContinuousConfig, tokens: Float[Array, "..."] | int = BASE_TOKENS
) -> Float[Array, "..."]:
    """Draws training times in [0, 1], float32, of items that have so many `tokens`."""
    density = DENSITIES[config.times]
    shift = SHIFTS[config.shift_by](config.shift, tokens, config.shift_tokens, jnp)
    return shift_time(density.times(density.draw(key, shape), config), shift)


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Three equivalent readings of a prediction at (t, x_t); arrays of x's shape."""

    data: Float[Array, "*X"]
    noise: Float[Array, "*X"]
    velocity: Float[Array, "*X"]


def interpolate(path: Path, t: Times, data: Float[Array, "*X"], noise: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """Mixes data and noise to x_t; t broadcasts against the data."""
    return path.alpha(t) * data + path.sigma(t) * noise


def target(
    path: Path, prediction: str, t: Times, data: Float[Array, "*X"], noise: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Computes the quantity that the head shall predict."""
    if prediction == "velocity":
        return path.d_alpha(t) * data + path.d_sigma(t) * noise
    if prediction == "v":
        return path.alpha(t) * noise - path.sigma(t) * data
    return {"noise": noise, "data": data}[prediction]


def estimates(path: Path, prediction: str, t: Times, x: Float[Array, "*X"], predicted: Float[Array, "*X"]) -> Estimates:
    """Computes data, noise and velocity from one predicted quantity, by solving x = alpha data + sigma noise.

    Denominators are kept away from 0 (noise prediction at t = 0, data prediction at t = 1), where x says nothing about
    the missing quantity.
    """
    alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    tiny = 1e-5  # below the signal that the capped cosine schedule leaves at its last step, 5e-5
    if prediction == "velocity":
        # alpha d_sigma - sigma d_alpha is -1 on the linear path, -pi/2 on the cosine path and never 0 on any.
        determinant = alpha * d_sigma - sigma * d_alpha
        data = (d_sigma * x - sigma * predicted) / determinant
        noise = (alpha * predicted - d_alpha * x) / determinant
        return Estimates(data, noise, predicted)
    if prediction == "v":
        power = alpha**2 + sigma**2
        data, noise = (alpha * x - sigma * predicted) / power, (sigma * x + alpha * predicted) / power
    elif prediction == "noise":
        data, noise = (x - sigma * predicted) / jnp.maximum(alpha, tiny), predicted
    else:
        data, noise = predicted, (x - alpha * predicted) / jnp.maximum(sigma, tiny)
    return Estimates(data, noise, d_alpha * data + d_sigma * noise)
