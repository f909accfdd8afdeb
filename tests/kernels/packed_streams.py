"""Random rows as attention sees them, in which every stream fills a slice."""

import jax.numpy as jnp
import numpy as np

from transfusion.sequence.masks import Metadata


def by_streams(rng, rows, sizes):
    """Packed documents of which every stream fills a slice of the row, in reading order, and then padding."""
    columns = np.zeros((5, rows, sum(sizes)), np.int32)
    ends = np.cumsum(sizes)
    for r in range(rows):
        at, left = list(ends - sizes), list(sizes)
        order = span = 0
        for document in range(1, rng.integers(0, 5) + 1):
            for _ in range(rng.integers(1, 6)):
                stream = int(rng.integers(len(sizes)))
                n = min(int(rng.integers(1, 10)), left[stream])
                kind = rng.integers(0, 3)
                span += 1
                own = span if kind else 0
                run = slice(at[stream], at[stream] + n)
                columns[:, r, run] = np.stack(np.broadcast_arrays(
                    document, np.arange(order, order + n), own, own if kind == 2 else 0, stream
                ))  # fmt: skip
                order, at[stream], left[stream] = order + n, at[stream] + n, left[stream] - n
        columns[4, r] = np.repeat(np.arange(len(sizes)), sizes)
    return Metadata(*map(jnp.asarray, columns))
