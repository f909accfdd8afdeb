"""Which rows of a batch this process reads, and the global arrays that all processes' rows make together."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def local_rows(batch: Any, shardings: Any) -> list[int]:
    """The rows of the global batch that the devices of this process hold, ascending; other processes may hold them too.

    Args:
      batch: the shapes [B, ...] of the global arrays.
      shardings: how they are split over the devices.
    """
    shape, on = jax.tree.leaves(batch)[0].shape, jax.tree.leaves(shardings)[0]
    parts = on.addressable_devices_indices_map(tuple(shape)).values()
    return sorted({row for index in parts for row in range(*index[0].indices(shape[0]))})


def place(batch: Any, shardings: Any, rows: Sequence[int], total: int) -> Any:
    """Makes global arrays [total, ...] on the devices.

    Args:
      batch: host arrays [len(rows), ...].
      rows: the rows that they hold, ascending; at least those of `local_rows`.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    at = {row: i for i, row in enumerate(rows)}

    def one(array: np.ndarray, on: jax.sharding.Sharding) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(total)
            return array[(slice(at[first], at[first] + last - first), *index[1:])]

        return jax.make_array_from_callback((total, *array.shape[1:]), on, part)

    return jax.tree.map(one, batch, shardings)
