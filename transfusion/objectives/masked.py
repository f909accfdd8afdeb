"""Masked tokens: how many of an item stay masked while it is drawn."""

from collections.abc import Callable

import numpy as np

from transfusion.errors import UsageError, check

# The masked share after the fraction r of the steps (MaskGIT, arXiv 2202.04200, section 3.3).
MASK_SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": lambda r: np.cos(r * np.float32(np.pi / 2)),
    "linear": lambda r: 1 - r,
}


def still_masked(tokens: int, steps: int, schedule: str = "cosine") -> np.ndarray:
    """How many of `tokens` tokens are masked after each step: int64 [steps], the last 0.

    The floor of the schedule's share (MaskGIT, arXiv 2202.04200, section 3.2), but each step reveals at least one token
    and leaves at least one to the steps after it, as long as that is possible.

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
