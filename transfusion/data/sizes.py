"""The sizes of images that keep nearly their own aspect: few sizes under a budget of tokens, which may grow.

Training data, held-out data, cached latents and the pictures of prompts all go through `nearest_size` and
`images.crop_and_resize`, so that a model never meets a size that it was not trained on. As there are few sizes, a codec
is compiled a few times, however many sizes the files have.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from fractions import Fraction

from transfusion.errors import UsageError

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """The sizes to which the images of a source, and the frames of its clips, are cropped and resized.

    An image gets the size whose aspect is nearest to its own, of several the one with the nearest area, and loses what
    hangs over at two of its sides. The sizes are all that the budget holds and to which it could not add both a row and
    a column of tokens: with 24 tokens 4x4, 4x5, 5x4, 4x6 and 6x4. A size may also be larger than the image.

    Attributes:
      tokens: the most tokens of an image; 0: as `listed`, or there are no such sizes and `resolution` counts.
      multiple: pixels of a token's side: `patch` of the stream times what the codec shrinks.
      aspect: the longer side is at most so many times the shorter one.
      listed: heights and widths in pixels that replace those of the rule; of these, those with at most `tokens` count.
      growth: (records, tokens): once so many records of the whole mixture have been read, images have at most so many
        tokens. Both numbers rise. What is read outside of training has the last of these sizes.
    """

    tokens: int = 0
    multiple: int = 16
    aspect: float = 2.0
    listed: tuple[tuple[int, int], ...] = ()
    growth: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens or self.listed)

    @property
    def stages(self) -> tuple[tuple[int, "SizesConfig"], ...]:
        """From which record of the mixture on which sizes count; the first is from 0 on."""
        budgets = ((0, self.tokens), *self.growth)
        return tuple((start, dataclasses.replace(self, tokens=tokens, growth=())) for start, tokens in budgets)

    @property
    def last(self) -> tuple[Size, ...]:
        """The sizes of the last stage; () if there are none."""
        config = self.stages[-1][1]
        return _sizes(config.tokens, config.multiple, config.aspect, config.listed) if config else ()

    def validate(self, where: str, pixel_limit: int, frames: int = 1) -> None:
        """Raises UsageError on values that cannot work; `where` names the field in the config."""
        if self.multiple < 1 or self.aspect < 1:
            raise UsageError(f"{where}: multiple={self.multiple} and aspect={self.aspect} must be at least 1")
        if self.growth and not self.tokens:
            raise UsageError(f"{where}.growth: set tokens to the number from which images grow")
        steps = ((0, self.tokens), *self.growth)
        for (start, tokens), (later, more) in zip(steps, steps[1:], strict=False):
            if later <= start or more <= tokens:
                raise UsageError(
                    f"{where}.growth: {later} records and {more} tokens must be more than {start} and {tokens}"
                )
        for height, width in self.listed:
            if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
                raise UsageError(f"{where}.listed: {height}x{width} is no multiple of {self.multiple} pixels")
        if steps[-1][1] * self.multiple**2 > pixel_limit:  # checked before the sizes are made
            raise UsageError(f"{where}: {steps[-1][1]} tokens of {self.multiple} pixels are over {pixel_limit=}")
        for _, stage in self.stages:
            if stage and not stage.last:
                raise UsageError(f"{where}.listed: no size has at most {stage.tokens} tokens")
        if self and max(height * width for height, width in self.last) * max(frames, 1) > pixel_limit:
            raise UsageError(f"{where}: {frames} frames of the largest size are more than data.{pixel_limit=}")


@functools.cache
def _sizes(tokens: int, multiple: int, aspect: float, listed: tuple[Size, ...]) -> tuple[Size, ...]:
    if listed:
        return tuple(size for size in listed if not tokens or size[0] * size[1] <= tokens * multiple**2)
    found = []
    for rows in range(1, tokens + 1):
        if rows > aspect * -(-tokens // rows):  # no row of this length is long enough, nor will a later one be
            break
        for columns in range(max(tokens // (rows + 1), 1), tokens // rows + 1):
            if (rows + 1) * (columns + 1) > tokens and max(rows, columns) <= aspect * min(rows, columns):
                found.append((rows * multiple, columns * multiple))
    return tuple(found)


def nearest_size(found: Sequence[int], sizes: Iterable[Size]) -> Size:
    """The size whose aspect, and then whose area, is nearest to that of an image, as factors; else the first of them.

    The numbers are exact, so that all machines choose the same.

    Args:
      found: height and width of the image.
      sizes: those to choose from.
    """
    height, width = found

    def distance(size: Size) -> tuple[Fraction, Fraction]:
        return _factor(height * size[1], width * size[0]), _factor(height * width, size[0] * size[1])

    return min(sizes, key=distance)


def _factor(one: int, other: int) -> Fraction:
    return Fraction(max(one, other), min(one, other))


def named(sizes: Iterable[Size], most: int = 8) -> str:
    """Sizes for people, as width x height, or how many there are."""
    sizes = [f"{width}x{height}" for height, width in sizes]
    return ", ".join(sizes) if len(sizes) <= most else f"{len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
