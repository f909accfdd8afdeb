"""The content of streams whose items are codes.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.content import Columns, Content, Tokens
from transfusion.sequence.items import Items, Prediction
from transfusion.sequence.patches import places
from transfusion.sequence.segment import Segment


@dataclasses.dataclass(frozen=True)
class Codes(Items):
    """Ids of a codec that has its own vocabulary, in raster order, or flat, scale after scale.

    Attributes:
      scales: sides of the square grids of an item at several scales; () has one grid.
      prediction: how they are predicted.
      fill: the id in the places behind an item that is shorter than its grid; -1: all items have that size.
    """

    vocabulary: int
    scales: tuple[int, ...] = ()
    prediction: Prediction = Prediction()
    fill: int = -1

    @property
    def axes(self) -> int:
        return 3 if self.scales else len(self.grid)

    @property
    def starts(self) -> bool:
        return self.prediction.starts

    @property
    def hides(self) -> bool:
        return self.prediction.hides

    @property
    def lead(self) -> int:
        return int(self.prediction.starts)

    @property
    def per_item(self) -> int:
        return self.lead + math.prod(self.item_shape())

    @property
    def _numbers(self) -> str:
        return f"{self.vocabulary:,} codes"

    def item_shape(self, sides: Sequence[int] = ()) -> tuple[int, ...]:
        return (sum(s * s for s in self.scales),) if self.scales else tuple(sides or self.grid)

    def check(self, segment: Segment) -> None:
        self.facts.check(segment)
        codes, wanted = self._filled(np.asarray(segment.value)), self.item_shape()
        if self.fill >= 0 and codes.size > wanted[0]:
            raise UsageError(f"{segment.kind}: {codes.size} ids do not fit the {wanted[0]} places of their stream")
        if codes.shape != wanted or codes.dtype.kind not in "iu":
            found = f"{codes.dtype} {list(codes.shape)}"
            raise UsageError(f"{segment.kind}: codes are whole numbers {list(wanted)}, not {found}: see codec.kind")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.vocabulary:
            raise UsageError(f"{segment.kind}: a code is outside of 0 to {self.vocabulary - 1}")

    def tokens(self, segment: Segment) -> Tokens:
        if self.scales:
            where = np.concatenate([np.insert(places((s, s)), 0, k, axis=1) for k, s in enumerate(self.scales)])
        else:
            where = places(self.grid)
        return self._tokens(self._filled(np.asarray(segment.value, np.int32)), where)

    def _filled(self, ids: np.ndarray) -> np.ndarray:
        missing = self.grid[0] - len(ids) if self.fill >= 0 else 0
        return np.concatenate([ids, np.full(missing, self.fill, ids.dtype)]) if missing > 0 else ids

    def targets(self, piece: Columns, follows: np.ndarray | None) -> Columns:
        return self.prediction.targets(piece, follows)

    def empty(self, rows: int, n: int, items: int) -> dict[str, np.ndarray]:
        return Content.empty(self, rows, n, items) | super().empty(rows, n, items)

    def fake(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.vocabulary, self.item_shape(), np.int32)

    def laid(self, items: Any, xp: Any = np) -> Any:
        return self._led(items.reshape(*items.shape[: items.ndim - len(self.item_shape())], -1), xp)

    def media(self, held: Any, sides: Sequence[int] = ()) -> Any:
        return held[..., self.lead :].reshape(*held.shape[:-1], *self.item_shape(sides))
