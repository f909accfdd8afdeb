"""The contents of streams whose items are continuous: latents in patches, and learned queries, which hold nothing.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.content import Columns, Tokens
from transfusion.sequence.items import Items
from transfusion.sequence.patches import patchify, places, unpatchify
from transfusion.sequence.segment import Segment


@dataclasses.dataclass(frozen=True)
class Latents(Items):
    """Continuous numbers in patches: of a codec's latents, or of an image itself.

    Attributes:
      channels: numbers of a latent (C).
      patch: sides of a patch [S], in the order of `grid`.
      lead: see `Content`; here the token of the noise level, or the start token.
      starts, hides: see `Content`.
      inside: whether that token lies in the bidirectional span of the item.
    """

    channels: int
    patch: tuple[int, ...]
    source: str = "value"
    lead: int = 0
    starts: bool = False
    hides: bool = False
    inside: bool = True

    field: ClassVar[str] = "values"
    dtype: ClassVar[type] = np.float32
    nothing: ClassVar[float] = math.nan

    @property
    def token_shape(self) -> tuple[int, ...]:
        return (self.channels * math.prod(self.patch),)

    @property
    def per_item(self) -> int:
        return self.lead + math.prod(self._counts(self.grid))

    @property
    def _numbers(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)}"

    def item_shape(self, sides: Sequence[int] = ()) -> tuple[int, ...]:
        return (*(sides or self.grid), self.channels)

    def check(self, segment: Segment) -> None:
        self.facts.check(segment)
        shape, patch = np.shape(segment.of(self.source)), self.patch
        if len(shape) != len(patch) + 1 or shape[-1] != self.channels or any(map(operator.mod, shape, patch)):
            raise UsageError(
                f"{segment.kind} of shape {shape} does not fit patches of {patch[-1]} and {self.channels} channels"
            )
        if self.aligned and shape[:-1] != tuple(self.grid):
            raise UsageError(f"{segment.kind} of shape {shape} does not fit the stream's grid {tuple(self.grid)}")

    def tokens(self, segment: Segment) -> Tokens:
        item = self._item(segment)
        return self._tokens(item, places(self._counts(item.shape[:-1])), 0 if self.inside else self.lead)

    def _item(self, segment: Segment) -> np.ndarray:
        return segment.of(self.source)

    def _counts(self, sides: Sequence[int]) -> tuple[int, ...]:
        """How many patches items of these sides have along each."""
        return tuple(side // p for side, p in zip(sides, self.patch, strict=True))

    def hidden(self, held: Any, xp: Any = np) -> Any:
        return xp.isnan(held[..., 0])

    def targets(self, piece: Columns, follows: np.ndarray | None) -> Columns:
        """The objective makes the targets, of the patches and the noise."""
        return {"loss_weight": piece["predictable"].astype(np.float32)}

    def empty(self, rows: int, n: int, items: int) -> dict[str, np.ndarray]:
        return {"values": np.zeros((rows, n, *self.token_shape), np.float32)} | super().empty(rows, n, items)

    def fake(self, rng: np.random.Generator) -> np.ndarray:
        first, *rest = self.patch
        sides = self.grid if self.aligned else (2 * first, *rest)
        return rng.standard_normal((*sides, self.channels), np.float32)

    def laid(self, items: Any, xp: Any = np) -> Any:
        return self._led(patchify(items, self.patch), xp)

    def media(self, held: Any, sides: Sequence[int] = ()) -> Any:
        return unpatchify(held[..., self.lead :, :], sides or self.grid, self.patch)


@dataclasses.dataclass(frozen=True)
class Queries(Latents):
    """Learned vectors, the same number for every item, whatever its size: their tokens hold nothing."""

    source: str = "none"

    def check(self, segment: Segment) -> None:
        self.facts.check(segment)

    def _item(self, segment: Segment) -> np.ndarray:
        return np.zeros((*self.grid, self.channels), np.float32)
