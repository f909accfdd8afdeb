"""Masked codes: chooses the codes of an item to hide in training, and how many stay hidden while it is drawn."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError, check
from transfusion.sequence import MASKED
from transfusion.sequence.arrays import Array, Bool, Float, Int, Shaped
from transfusion.sequence.batch import StreamSlice

StreamDraws = dict[str, Shaped[Array, "B _"]]

# The masked share after the fraction r of the steps (MaskGIT, arXiv 2202.04200, section 3.3).
MASK_SCHEDULES: dict[str, Callable[..., Any]] = {
    "cosine": lambda r, xp=np: xp.cos(r * np.float32(np.pi / 2)),
    "linear": lambda r, xp=np: 1 - r,
}


MASK_WEIGHTINGS = ("none", "inverse")


@dataclasses.dataclass(frozen=True)
class MaskedConfig:
    """How codes are hidden in training.

    Attributes:
      schedule: a key of `MASK_SCHEDULES`, which gives the masked share; training draws its fraction evenly from [0, 1].
      weighting: one of `MASK_WEIGHTINGS`. With 'none' the loss is the mean over the hidden codes of the batch. With
        'inverse' and the schedule 'linear' it bounds the likelihood (LLaDA, arXiv 2502.09992, equation 3).
    """

    schedule: str = "cosine"
    weighting: str = "none"

    def __post_init__(self):
        check("objectives.masked.schedule", self.schedule, MASK_SCHEDULES)
        check("objectives.masked.weighting", self.weighting, MASK_WEIGHTINGS)


def mask(share: Float[Array, "B M"], order: Float[Array, "B N"]) -> Bool[Array, "B N"]:
    """Chooses the codes to hide, bool [B, N]: a share of each item, rounded, and at least one code unless it is 0.

    See MaskGIT (arXiv 2202.04200, section 3.1) and Show-o (arXiv 2408.12528, section 3.2).

    Args:
      share: share of each item that is hidden, float32 [B, M].
      order: float [B, N]; the codes of an item with the lowest values are hidden.
    """
    order = order.reshape(*share.shape, -1)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
    count = jnp.maximum(jnp.round(order.shape[-1] * share), share > 0)
    return (rank < count[..., None]).reshape(len(share), -1)


def draw(key: jax.Array, part: StreamSlice, config: MaskedConfig) -> StreamDraws:
    """Draws the random numbers of a step: 'time' [B, M], evenly in [time_low, 1], and those of `hiding`.

    The time says how much of an item is known. The schedule gives the hidden share at that time, none at time 1."""
    time_key, order_key = jax.random.split(key)
    time = part.time_low + (1 - part.time_low) * jax.random.uniform(time_key, part.time_low.shape)
    share = jnp.where(time < 1, MASK_SCHEDULES[config.schedule](time, jnp), 0.0)
    drawn = {"time": time} | hiding(mask(share, jax.random.uniform(order_key, part.loss_weight.shape)), part)
    if config.weighting == "none":
        return drawn
    of_items = drawn["mask"].reshape(*share.shape, -1)
    weight = of_items / jnp.maximum(of_items.mean(-1, keepdims=True), 1e-6)
    return drawn | {"weight": weight.reshape(part.loss_weight.shape)}


def hiding(hidden: Bool[Array, "B N"], part: StreamSlice) -> StreamDraws:
    """Makes 'mask' bool [B, N], true for hidden codes, and the 'weight' [B, N] of each code's loss, 0 for the others.

    The weights are such that the loss, which is divided by the weight of all codes, is the mean over the hidden ones of
    the whole batch.
    """
    counted = jnp.sum(part.loss_weight * hidden)
    return {"mask": hidden, "weight": hidden * (jnp.sum(part.loss_weight) / jnp.maximum(counted, 1e-6))}


def clean(part: StreamSlice) -> StreamDraws:
    """Makes the numbers that leave items unchanged: nothing is hidden."""
    return {"time": jnp.ones_like(part.time_low)} | hiding(jnp.zeros(part.loss_weight.shape, bool), part)


def content(part: StreamSlice, draws: StreamDraws, config: MaskedConfig) -> Int[Array, "B N"]:
    """The ids [B, N] that the embed reads, with `MASKED` in place of the hidden codes."""
    return jnp.where(draws["mask"], MASKED, part.tokens)


def still_masked(tokens: int, steps: int, schedule: str = "cosine") -> Int[np.ndarray, "{steps}"]:
    """Counts how many of `tokens` tokens are still masked after each step: int64 [steps], the last one 0.

    The count is the floor of the schedule's share (MaskGIT, arXiv 2202.04200, section 3.2). But each step reveals at
    least one token and leaves at least one to each step after it, as long as that is possible.

    Raises:
      UsageError: if the schedule is not known, or there is nothing to do.
    """
    check("masking", schedule, MASK_SCHEDULES)
    if tokens < 1 or steps < 1:
        raise UsageError("masking: tokens and steps must be positive")
    # In float32, as published decoders compute it: two thirds of the cosine is then a little less than one half.
    shares = MASK_SCHEDULES[schedule](np.arange(1, steps + 1, dtype=np.float32) / np.float32(steps))
    left = np.zeros(steps, np.int64)
    before = tokens
    for i, wanted in enumerate(np.floor(tokens * shares[:-1])):
        left[i] = before = max(1, min(before - 1, int(wanted)))
    return left
