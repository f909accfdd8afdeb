"""The contents of streams that have items (images, clips, sounds): codes, latents and queries.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.content import Columns, Content, Facts, Tokens, successors, themselves
from transfusion.sequence.patches import patchify, places, unpatchify
from transfusion.sequence.segment import Segment


@dataclasses.dataclass(frozen=True)
class Items(Content):
    """What contents with items have in common.

    Attributes:
      grid: sides of an item's latents or codes; zeros where items differ.
      facts: what a row knows of each item.
    """

    grid: tuple[int, ...]
    facts: Facts

    left_out: ClassVar[float] = 0.3

    @property
    def sides(self) -> int:
        return len(self.grid)

    @property
    def axes(self) -> int:
        return len(self.grid)

    @property
    def aligned(self) -> bool:
        return any(self.grid)

    @property
    def mixed(self) -> bool:
        return not any(self.grid)

    def add_item(self, items: dict[str, list], stream: str, segment: Segment, time_low: float) -> int:
        items.setdefault(stream, []).append(self.facts.of(segment, time_low))
        return len(items[stream]) - 1

    def counted_in(self, stream: str) -> str:
        return stream

    @property
    def words(self) -> str:
        sides = " x ".join(map(str, self.grid)) if self.aligned else "any size"
        classes = f", {self.facts.classes} classes" if self.facts.classes else ""
        return f"{sides}, {self._numbers}{classes}"

    @property
    def _numbers(self) -> str:
        """What the numbers of an item are, for people."""
        raise NotImplementedError

    def asked(self, label: Any, pooled: Any, xp: Any = np) -> dict[str, Any]:
        return self.facts.asked(label, pooled, xp)

    def usual_tokens(self, budget: int, items: int) -> int:
        return self.per_item if self.aligned else budget // items

    def slots(self, tokens: int, items: int) -> int:
        return items * self.per_item if self.aligned else tokens

    def resources(self, name: str, tokens: int, items: int) -> dict[str, int]:
        return {name: tokens} | ({f"{name}:items": items} if self.mixed else {})

    def empty(self, rows: int, n: int, items: int) -> dict[str, np.ndarray]:
        return {"place": np.zeros((rows, n, self.axes), np.int32)} | self.facts.empty(rows, items)

    def offered(self, size: tuple[int, ...]) -> tuple[int, ...] | None:
        if self.aligned:
            return (0, 0)
        return size if len(size) == self.sides and any(size) else None

    def drawn_sides(self, size: tuple[int, ...], kind: str) -> tuple[int, ...]:
        """The sides of an item of this kind that is drawn: `size`, or if it is zeros those of all items.

        Raises:
          UsageError: if there are none of that size, or any size may be asked for and none is.
        """
        if self.aligned:
            if any(size) and tuple(size) != tuple(self.grid):
                known = _by(self.grid)
                raise UsageError(f"this model draws no {kind} of {_by(size)} latents or codes: it draws {known}")
            return tuple(self.grid)
        named = "height and width" if self.sides == 2 else f"{self.sides} sides"
        if not any(size):
            raise UsageError(f"this model draws {kind}s of any size: say which ({named} of the latents)")
        if len(size) != self.sides or any(map(operator.mod, size, self.patch)):
            multiples = f"any size of {named} that are multiples of {_by(self.patch)}"
            raise UsageError(f"this model draws no {kind} of {_by(size)} latents: it draws {multiples}")
        return tuple(size)

    def item_shape(self, sides: Sequence[int] = ()) -> tuple[int, ...]:
        """The shape of an item of these sides (default: `grid`): [*sides, C] of latents, [*sides] or [n] of codes."""
        raise NotImplementedError

    def laid(self, items: Any, xp: Any = np) -> Any:
        """Items [..., *item_shape] as what their tokens hold, [..., lead + n, *token_shape], with zeros in front.

        Args:
          xp: the module of the arrays, numpy or jax.numpy.
        """
        raise NotImplementedError

    def media(self, held: Any, sides: Sequence[int] = ()) -> Any:
        """What the tokens of items of these sides hold, back as items; inverse of `laid`."""
        raise NotImplementedError

    def _led(self, held: Any, xp: Any) -> Any:
        """Puts zeros in front, for the tokens that are no patch and no code."""
        if not self.lead:
            return held
        axis = held.ndim - 1 - len(self.token_shape)
        return xp.pad(held, [(self.lead * (i == axis), 0) for i in range(held.ndim)])

    def _tokens(self, item: np.ndarray, where: np.ndarray, outside: int = 0) -> Tokens:
        """The tokens of an item; `where` is the places of its patches or codes."""
        known = np.ones(self.lead + len(where), np.float32)
        known[: self.lead] = 0
        if self.lead:
            where = np.pad(where, ((self.lead, 0), (0, 0)), constant_values=-1)
        return Tokens({self.field: self.laid(item), "place": where}, where, known, outside)


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """How the codes of an item are predicted.

    Attributes:
      starts, hides: see `Content`.
      targets: see `Content.targets`.
    """

    starts: bool = False
    hides: bool = False
    targets: Callable[[Columns, np.ndarray | None], Columns] = successors


# By the objective of the stream: of codes, and of latents whose tokens are predicted by themselves. At several scales
# the embed of a code is made of the scales before it, so that its own id can be its target.
PREDICTIONS: dict[str, Prediction] = {
    "none": Prediction(),
    "next_token": Prediction(starts=True),
    "masked": Prediction(hides=True, targets=themselves),
    "next_scale": Prediction(targets=themselves),
    "token_flow": Prediction(starts=True),
    "masked_flow": Prediction(hides=True),
}


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
