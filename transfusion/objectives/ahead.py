"""Mean velocities: the objectives 'shortcut' and 'mean_flow', whose models draw an image in one or a few steps.

The model is asked at (x, t, ahead) for the mean of the velocity on the way from t to t + ahead, so that one evaluation
makes a step of any size: x at t + ahead is x + ahead u(x, t, ahead). With ahead 0 that is the velocity, which flow
matching trains as in 'continuous'. The targets of the other items come from the model itself, without gradient, and
from its average where the run keeps one:

- 'shortcut' (arXiv 2410.12557, section 3): a step is two half steps. The smallest half steps ask for the velocity.
- 'mean_flow' (arXiv 2505.13447, section 4.1): the derivative of ahead u = integral of v along the way gives
  u = v + ahead du/dt, where the end of the way stands still, so that `ahead` falls as t grows.

A packed row has items of both kinds, each with its own two times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from transfusion.errors import UsageError
from transfusion.objectives import continuous
from transfusion.objectives.continuous import StreamDraws, spread
from transfusion.objectives.paths import ContinuousConfig
from transfusion.sequence.arrays import Array, Float
from transfusion.sequence.batch import StreamSlice

SMALLEST = 1e-3  # what is added to an error before it divides
Predict = Callable[..., jax.Array]
"""`predict(x, time, ahead, words=True)`: the stream's head [B, N, E] for x [B, N, E], and time and ahead [B, M], in the
rows at hand; without `words` as if the documents had none."""


def fits(where: str, config: ContinuousConfig) -> None:
    """Raises a UsageError, beginning with `where`, if the model does not predict velocities: noise has no mean."""
    if config.prediction != "velocity":
        raise UsageError(f"{where}.prediction: a mean velocity needs 'velocity', not {config.prediction!r}")


def _chosen(part: StreamSlice, config: ContinuousConfig) -> jax.Array:
    """The items [B, M] whose target comes from the model: drawn ones, in every n-th row."""
    rows = jnp.arange(part.time_low.shape[0]) % config.ahead.every == 0
    return rows[:, None] & (part.time_low == 0) & (config.ahead.share > 0)


def draw_halved(key: jax.Array, part: StreamSlice, config: ContinuousConfig) -> StreamDraws:
    """Draws the numbers of a step as 'continuous' does, and 'ahead' [B, M], a power of 1/2.

    The times of items with ahead > 0 are multiples of it, as in sampling (arXiv 2410.12557, section 3.2)."""
    draws = continuous.draw(key, part, config)
    level_key, place_key = jax.random.split(jax.random.fold_in(key, 2))
    shape, chosen = part.time_low.shape, _chosen(part, config)
    parts = 2.0 ** jax.random.randint(level_key, shape, 0, config.ahead.levels)
    time = jnp.floor(jax.random.uniform(place_key, shape) * parts) / parts
    return draws | {"time": jnp.where(chosen, time, draws["time"]), "ahead": jnp.where(chosen, 1 / parts, 0.0)}


def draw_any(key: jax.Array, part: StreamSlice, config: ContinuousConfig) -> StreamDraws:
    """The same with two times that are drawn alike, the earlier of which is t (arXiv 2505.13447, section 4.3)."""
    draws = continuous.draw(key, part, config)
    other = continuous.draw(jax.random.fold_in(key, 2), part, config)["time"]
    chosen, first, last = _chosen(part, config), jnp.minimum(draws["time"], other), jnp.maximum(draws["time"], other)
    return draws | {"time": jnp.where(chosen, first, draws["time"]), "ahead": jnp.where(chosen, last - first, 0.0)}


def clean(part: StreamSlice) -> StreamDraws:
    """Makes the numbers that leave items unchanged."""
    return continuous.clean(part) | {"ahead": jnp.zeros_like(part.time_low)}


# --- targets ----------------------------------------------------------------------------------------------------------


def _velocity(predict: Predict, x: jax.Array, time: jax.Array, config: ContinuousConfig) -> jax.Array:
    """The model's velocity [B, N, E], guided by the words: later draws need no second evaluation."""
    still = jnp.zeros_like(time)
    v = predict(x, time, still)
    if config.ahead.guidance == 1:
        return v
    without = predict(x, time, still, words=False)
    return without + config.ahead.guidance * (v - without)


def halves(predict: Predict, part: StreamSlice, draws: StreamDraws, config: ContinuousConfig) -> Float[Array, "B N E"]:
    """The target of a step: the mean of two half steps, one behind the other."""
    half, least = draws["ahead"] / 2, 0.5**config.ahead.levels
    far = spread(half, part.item)

    def mean(x, time):
        smallest = _velocity(predict, x, time, config)
        return jnp.where(far > least, predict(x, time, half), smallest)

    x, time = continuous.noised(part, draws, config), draws["time"]
    first = mean(x, time)
    return (first + mean(x + far * first, time + half)) / 2


def derivative(
    predict: Predict, part: StreamSlice, draws: StreamDraws, config: ContinuousConfig
) -> Float[Array, "B N E"]:
    """The target v + ahead du/dt, the derivative being that along the way of the model's own velocity v."""
    x, time, ahead = continuous.noised(part, draws, config), draws["time"], draws["ahead"]
    v = _velocity(predict, x, time, config)
    _, change = jax.jvp(predict, (x, time, ahead), (v, jnp.ones_like(time), -jnp.ones_like(ahead)))
    return v + spread(ahead, part.item) * change


# --- loss -------------------------------------------------------------------------------------------------------------


def loss(
    predicted: Float[Array, "B N E"], part: StreamSlice, draws: StreamDraws, config: ContinuousConfig
) -> Float[Array, "B N"]:
    """The squared error per token, as of 'continuous', with the targets that the draws hold where ahead > 0.

    `ahead.power` weighs each item by its own error."""
    plain = continuous.loss(predicted, part, draws, config)
    error = jnp.mean(jnp.square(predicted - draws["target"]), axis=-1)
    error = jnp.where(spread(draws["ahead"], part.item)[..., 0] > 0, error, plain)
    return _weighed(error, part, config.ahead.power) if config.ahead.power else error


def _weighed(error: jax.Array, part: StreamSlice, power: float) -> jax.Array:
    """The error [B, N] over a power of the mean error of its item, which is a constant to the gradient."""
    real, row = part.document > 0, jnp.arange(len(error))[:, None]

    def of_items(x: jax.Array) -> jax.Array:
        return jnp.zeros(part.time_low.shape, x.dtype).at[row, part.item].add(x * real)

    mean = of_items(error) / jnp.maximum(of_items(jnp.ones_like(error)), 1)
    return error / (jax.lax.stop_gradient(spread(mean, part.item)[..., 0]) + SMALLEST) ** power
