"""What the contents of streams that have items (images, clips, sounds) have in common.

`code_items` and `latent_items` are the contents themselves.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.content import Columns, Content, Facts, Tokens, successors, themselves
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
