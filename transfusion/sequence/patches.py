"""Latents and pixels in patches, one per token. The functions take NumPy and JAX arrays, and need neither by name: the
tables of a config import this module, and load no JAX."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def patchify(latents: Any, patch: Sequence[int]) -> Any:
    """Latents [..., *sides, C] -> patches [..., n, E] in raster order; `patch` has the sides [S] of one."""
    s = len(patch)
    *lead, c = latents.shape
    lead, sides = lead[: len(lead) - s], lead[len(lead) - s :]
    counts = [side // p for side, p in zip(sides, patch, strict=True)]
    split = latents.reshape(*lead, *(n for pair in zip(counts, patch, strict=True) for n in pair), c)
    axes = (*range(0, 2 * s, 2), *range(1, 2 * s, 2), 2 * s)
    split = split.transpose(*range(len(lead)), *(len(lead) + axis for axis in axes))
    return split.reshape(*lead, math.prod(counts), math.prod(patch) * c)


def unpatchify(patches: Any, grid: Sequence[int], patch: int | Sequence[int]) -> Any:
    """Patches [..., n, E] in raster order -> latents [..., *grid, C]; inverse of `patchify`."""
    patch = (patch,) * len(grid) if isinstance(patch, int) else patch
    counts = [side // p for side, p in zip(grid, patch, strict=True)]
    lead, s = patches.shape[:-2], len(grid)
    x = patches.reshape(*lead, *counts, *patch, patches.shape[-1] // math.prod(patch))
    axes = [axis for i in range(s) for axis in (i, s + i)] + [2 * s]
    return x.transpose(*range(len(lead)), *(len(lead) + axis for axis in axes)).reshape(*lead, *grid, x.shape[-1])


def places(counts: Sequence[int]) -> np.ndarray:
    """The places int32 [n, S] of patches or codes in raster order, of which an item has `counts` on its sides."""
    return np.indices(counts).reshape(len(counts), -1).T.astype(np.int32)
