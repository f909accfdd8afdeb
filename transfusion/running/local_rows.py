"""Which rows of a batch this process reads, and the global arrays that all processes' rows make together."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def local_rows(batch: Any, shardings: Any) -> list[int]:
    """The rows of the global batch that this process' devices hold, ascending; others may hold them too.

    `batch` are the shapes [B, ...] of the global arrays, `shardings` where they lie.
    """
    shape, on = jax.tree.leaves(batch)[0].shape, jax.tree.leaves(shardings)[0]
    parts = on.addressable_devices_indices_map(tuple(shape)).values()
    return sorted({row for index in parts for row in range(*index[0].indices(shape[0]))})


def place(batch: Any, shardings: Any, rows: Sequence[int], total: int) -> Any:
    """Global arrays [total, ...] of host arrays [len(rows), ...] that hold the ascending `rows`, at least the local."""
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    at = {row: i for i, row in enumerate(rows)}

    def one(array: np.ndarray, on: jax.sharding.Sharding) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(total)
            return array[(slice(at[first], at[first] + last - first), *index[1:])]

        return jax.make_array_from_callback((total, *array.shape[1:]), on, part)

    return jax.tree.map(one, batch, shardings)
