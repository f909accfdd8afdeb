"""Codes without training: each value rounded to one of a few levels (FSQ, arXiv 2309.15505, without an autoencoder)."""

import dataclasses

import numpy as np

from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class LevelsConfig:
    """How values become codes.

    Attributes:
      levels: of a value, evenly from `low` to `high`.
      channels: values of a code: those of a pixel, or groups of mel bands, each averaged; levels ** channels codes.
      patch: side of the squares of pixels, or number of frames, that are averaged.
    """

    levels: int = 17
    channels: int = 1
    patch: int = 1
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        if self.levels < 2 or min(self.channels, self.patch) < 1 or self.low >= self.high:
            raise UsageError("codec.levels: levels must be 2 or more, channels and patch positive, low below high")

    @property
    def codes(self) -> int:
        return self.levels**self.channels

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Float [*sides, C] -> int32 [*sides / patch].

        Raises:
          UsageError: if `patch` does not divide the sides, or `channels` does not divide C.
        """
        *sides, c = values.shape
        if any(side % self.patch for side in sides) or c % self.channels:
            raise UsageError(
                f"codec.levels: patch {self.patch} and channels {self.channels} do not divide {[*sides, c]}"
            )
        split = [n for side in sides for n in (side // self.patch, self.patch)]
        averaged = (*range(1, 2 * len(sides), 2), 2 * len(sides) + 1)
        means = values.reshape(*split, self.channels, -1).mean(averaged)
        steps = np.round((means - self.low) / (self.high - self.low) * (self.levels - 1))
        return (np.clip(steps, 0, self.levels - 1).astype(np.int32) @ self._radix).astype(np.int32)

    def decode(self, codes: np.ndarray, sides: int, channels: int) -> np.ndarray:
        """Int [..., *sides] -> float32 [..., *sides * patch, channels], by the number of sides."""
        steps = np.asarray(codes)[..., None] // self._radix % self.levels
        values = self.low + steps.astype(np.float32) * ((self.high - self.low) / (self.levels - 1))
        for axis in range(-1 - sides, -1):
            values = values.repeat(self.patch, axis)
        return values.repeat(channels // self.channels, -1).astype(np.float32)

    @property
    def _radix(self) -> np.ndarray:
        return self.levels ** np.arange(self.channels)
