"""Codes without training: values are rounded to a few levels (FSQ, arXiv 2309.15505, without an autoencoder)."""

import dataclasses
import itertools

import numpy as np

from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class LevelsConfig:
    """How values become codes. There are levels ** channels of them.

    Attributes:
      levels: how many levels a value may have, evenly from `low` to `high`.
      channels: how many values make a code: the channels of a pixel, or groups of mel bands, each averaged.
      patch: the side of the squares of pixels, or the number of frames, that are averaged before.
      low, high: the least and the largest level.
      scales: sides of square grids of codes, each a multiple of the one before it; the last is that of the image. The
        codes of a grid are those of what the grids before it leave over (VAR, arXiv 2404.02905, algorithm 1, without
        convolutions). () has one grid.
    """

    levels: int = 17
    channels: int = 1
    patch: int = 1
    low: float = -1.0
    high: float = 1.0
    scales: tuple[int, ...] = ()

    def __post_init__(self):
        if self.levels < 2 or min(self.channels, self.patch) < 1 or self.low >= self.high:
            raise UsageError("codec.levels: levels must be 2 or more, channels and patch positive, low below high")
        if any(after <= before or after % before for before, after in itertools.pairwise(self.scales)):
            raise UsageError(f"codec.levels.scales {self.scales}: each must be a multiple of the one before")

    @property
    def codes(self) -> int:
        return self.levels**self.channels

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values float [*sides, C] -> codes int32 [*sides / patch], or flat [n] at several scales.

        Raises:
          UsageError: if `patch` does not divide the sides, `channels` does not divide C, or the last scale does not
            fit.
        """
        *sides, c = values.shape
        if any(side % self.patch for side in sides) or c % self.channels:
            raise UsageError(
                f"codec.levels: patch {self.patch} and channels {self.channels} do not divide {[*sides, c]}"
            )
        split = [n for side in sides for n in (side // self.patch, self.patch)]
        averaged = (*range(1, 2 * len(sides), 2), 2 * len(sides) + 1)
        means = values.reshape(*split, self.channels, -1).mean(averaged)
        if not self.scales:
            return self._codes(means)
        if means.shape[:-1] != (self.scales[-1],) * 2:
            raise UsageError(
                f"codec.levels.scales {self.scales}: the last must be the side of the grid of codes, which is "
                f"{list(means.shape[:-1])}"
            )
        codes: list[np.ndarray] = []
        for side in self.scales:
            times = len(means) // side
            codes.append(self._codes(means.reshape(side, times, side, times, -1).mean((1, 3))))
            means = means - _enlarged(self._values(codes[-1]), times, 2)
        return np.concatenate([part.reshape(-1) for part in codes])

    def decode(self, codes: np.ndarray, sides: int, channels: int) -> np.ndarray:
        """Codes int [..., *sides], or [..., n] at several scales -> float32 [..., *sides * patch, channels].

        `sides` is how many axes are sides: 2 for images, 1 for frames.
        """
        values = self._values(codes)
        if self.scales:
            parts = np.split(values, np.cumsum(np.square(self.scales))[:-1], -2)
            square = [part.reshape(*part.shape[:-2], s, s, -1) for part, s in zip(parts, self.scales, strict=True)]
            values = sum(_enlarged(part, self.scales[-1] // part.shape[-2], 2) for part in square)
        return _enlarged(values, self.patch, sides).repeat(channels // self.channels, -1).astype(np.float32)

    def _codes(self, values: np.ndarray) -> np.ndarray:
        """[..., channels] -> int32 [...]."""
        steps = np.round((values - self.low) / (self.high - self.low) * (self.levels - 1))
        return (np.clip(steps, 0, self.levels - 1).astype(np.int32) @ self._radix).astype(np.int32)

    def _values(self, codes: np.ndarray) -> np.ndarray:
        """Int [...] -> float32 [..., channels]."""
        steps = np.asarray(codes)[..., None] // self._radix % self.levels
        return np.float32(self.low) + steps.astype(np.float32) * np.float32((self.high - self.low) / (self.levels - 1))

    @property
    def _radix(self) -> np.ndarray:
        return self.levels ** np.arange(self.channels)


def _enlarged(x: np.ndarray, times: int, sides: int) -> np.ndarray:
    """The array [..., *sides, C] with the entries of its last `sides` sides repeated."""
    for axis in range(-1 - sides, -1):
        x = x.repeat(times, axis)
    return x
