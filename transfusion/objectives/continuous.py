"""Continuous streams: flow matching and DDPM. One noise level per item; noise falls on the latents."""

from typing import Any

import jax
import jax.numpy as jnp

from transfusion.objectives.paths import PATHS, WEIGHTINGS, ContinuousConfig, interpolate, sample_times, target
from transfusion.sequence.arrays import Array, Float, Int
from transfusion.sequence.batch import StreamSlice

BUCKETS = 10
StreamDraws = dict[str, Float[Array, "B ..."]]


def spread(per_item: Float[Array, "B M"], item: Int[Array, "B N"]) -> Float[Array, "B N 1"]:
    """Spreads values of items [B, M] over their tokens: [B, N, 1]."""
    return jnp.take_along_axis(per_item, item, axis=1)[..., None]


def tokens_of(part: StreamSlice) -> Float[Array, "B M"]:
    """How many patches each item has, at least 1; the token of its noise level is none."""
    patch = (part.document > 0) & (part.place[..., 0] >= 0)
    inside = part.item[..., None] == jnp.arange(part.time_low.shape[1])[None, None]
    return jnp.maximum(jnp.sum(inside & patch[..., None], axis=1), 1).astype(jnp.float32)


def draw(key: jax.Array, part: StreamSlice, config: ContinuousConfig) -> StreamDraws:
    """Draws the random numbers of a step: each item's 'time' [B, M] in [time_low, 1], and 'noise' [B, N, E].

    A capped item's times fill [time_low, 1] (Transfusion, section 4.3.4); a clean item has time 1.
    """
    time_key, noise_key = jax.random.split(key)
    t = sample_times(time_key, part.time_low.shape, config, tokens_of(part))
    return {
        "time": part.time_low + (1 - part.time_low) * t,
        "noise": jax.random.normal(noise_key, part.values.shape, jnp.float32),
    }


def clean(part: StreamSlice) -> StreamDraws:
    """Makes the numbers that leave items unchanged: time 1, and no noise."""
    return {"time": jnp.ones_like(part.time_low), "noise": jnp.zeros_like(part.values)}


def noised(part: StreamSlice, draws: StreamDraws, config: ContinuousConfig) -> Float[Array, "B N E"]:
    """Mixes data and noise to x_t [B, N, E], at the time of each item."""
    return interpolate(PATHS[config.path], spread(draws["time"], part.item), part.values, draws["noise"])


def loss(
    predicted: Float[Array, "B N E"],
    part: StreamSlice,
    draws: StreamDraws,
    config: ContinuousConfig,
) -> Float[Array, "B N"]:
    """The squared error per token, float32 [B, N]: the mean over its E numbers, times the weighting of its time."""
    t = spread(draws["time"], part.item)
    wanted = target(PATHS[config.path], config.prediction, t, part.values, draws["noise"])
    error = jnp.mean(jnp.square(predicted - wanted), axis=-1)
    return error if config.weighting == "none" else error * WEIGHTINGS[config.weighting](t[..., 0])


# --- each token by itself ---------------------------------------------------------------------------------------------

TIMES_OF_A_TOKEN = 4  # the trunk's output is used for so many noise levels (MAR, arXiv 2406.11838, appendix)


def draw_of_tokens(key: jax.Array, part: StreamSlice, config: ContinuousConfig) -> StreamDraws:
    """Draws noise levels 'times' [B, N, K] of each token, and 'noise' [B, N, K, E]; the trunk reads clean tokens."""
    time_key, noise_key = jax.random.split(key)
    b, n, e = part.values.shape
    return {
        "times": sample_times(time_key, (b, n, TIMES_OF_A_TOKEN), config),
        "noise": jax.random.normal(noise_key, (b, n, TIMES_OF_A_TOKEN, e), jnp.float32),
    }


def loss_of_tokens(
    head: Any, given: Float[Array, "B N D"], part: StreamSlice, draws: StreamDraws, config: ContinuousConfig
) -> Float[Array, "B N"]:
    """The squared error per token [B, N] of `head.velocity`, given an output of the trunk for each token."""
    path, (b, n, k, e) = PATHS[config.path], draws["noise"].shape
    given = jnp.repeat(given, k, axis=1)
    x, noise = jnp.repeat(part.values, k, axis=1), draws["noise"].reshape(b, n * k, e)
    t = draws["times"].reshape(b, n * k)
    predicted = head.velocity(given, interpolate(path, t[..., None], x, noise), t)
    wanted = target(path, config.prediction, t[..., None], x, noise)
    error = jnp.mean(jnp.square(predicted - wanted), axis=-1) * WEIGHTINGS[config.weighting](t)
    return error.reshape(b, n, k).mean(-1)


def by_time(
    per_token: Float[Array, "B N"], part: StreamSlice, draws: StreamDraws
) -> tuple[Float[Array, "buckets"], Float[Array, "buckets"]]:
    """Sums a per-token loss and its weights in `BUCKETS` equal buckets of t, float32 [BUCKETS] each."""
    bucket = jnp.clip((spread(draws["time"], part.item)[..., 0] * BUCKETS).astype(jnp.int32), 0, BUCKETS - 1)
    inside = (bucket[..., None] == jnp.arange(BUCKETS)[None, None]) * part.loss_weight[..., None]
    return jnp.einsum("bn,bnk->k", per_token, inside), inside.sum((0, 1))
