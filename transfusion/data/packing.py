"""Packs documents into rows with a budget for each stream: first fit, deterministic, resumable at the exact row.

Each row of the global batch has a lane. Lane r of B reads the examples r, r + B, r + 2B, ... of an endless indexed
sequence and packs its own rows, so that the batches depend neither on the number of hosts nor on which row is made
first. A lane knows only two things of an item: its `cost` (name of a resource -> amount) and how to `split` it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol


class Item(Protocol):
    """Anything that takes room in a row.

    `cost` is how much it takes of each resource. `split(budget)` cuts it into a head that fits and the rest, or returns
    None if it cannot be cut. It must depend on its arguments only, because a restored lane repeats the cuts.
    """

    cost: Mapping[str, int]

    def split(self, budget: Mapping[str, int]) -> "tuple[Item, Item] | None": ...


@dataclasses.dataclass(frozen=True)
class Bad:
    """An example that cannot be used: which one, and one line that says why."""

    name: str
    error: str


@dataclasses.dataclass(frozen=True)
class Piece:
    """An example, or a part of one.

    Attributes:
      index: the example's index in the sequence.
      cuts: the budgets with which the example was split, one after the other.
      head: whether the part is the head of the last cut; otherwise it is the rest behind all cuts.
      item: the part itself.
    """

    index: int
    cuts: tuple[Mapping[str, int], ...]
    head: bool
    item: Item

    def to_json(self) -> list:
        return [self.index, [dict(cut) for cut in self.cuts], self.head]


Row = tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The position of a lane: the next example, the texts that wait, and the open bins, the oldest first."""

    cursor: int
    waiting: Row
    bins: tuple[Row, ...]

    def to_json(self) -> dict:
        return {
            "cursor": self.cursor,
            "waiting": [piece.to_json() for piece in self.waiting],
            "bins": [[piece.to_json() for piece in row] for row in self.bins],
        }


class Lane:
    """Packs the examples first, first + stride, first + 2 stride, ... into rows.

    A bin is a row that is not full yet. Up to `open_rows` bins are open. An item goes into the oldest bin that has room
    for it in every budget, or into a new bin. When no more bins may be opened, the fullest one (the oldest of several)
    leaves as a row.

    Items that can be cut (texts) wait and fill the room that other items cannot use. As soon as a bin has no room for
    another item like those in it, it is filled up with waiting texts, the last of which is cut to size, and leaves. If
    texts were packed by first fit, they would take the room of captions, and slots of images would stay empty. No more
    text waits than fills half of the open rows; beyond that the fullest bin is filled up and leaves. Items that do not
    fit in an empty row go to `on_bad`.
    """

    def __init__(
        self,
        example: Callable[[int], Item | Bad],
        budgets: Mapping[str, int],
        first: int = 0,
        stride: int = 1,
        open_rows: int = 8,
        split: bool = True,
        min_piece: int = 16,
        on_bad: Callable[[Bad], None] = lambda bad: None,
    ):
        self._example, self._budgets = example, dict(budgets)
        self._stride, self._open_rows, self._split, self._min_piece = stride, open_rows, split, min_piece
        self._on_bad = on_bad
        self._cursor = first
        self._waiting: list[Piece] = []
        self._bins: list[Row] = []
        self._left: list[dict[str, int]] = []
        self.read = 0  # examples taken since construction, bad ones included

    def next_row(self) -> Row:
        """Returns the next full row."""
        while True:
            if (at := self._to_fill()) is not None and self._fill(at):
                return self._take(at)
            piece = self._next_piece()
            if self._split and _can_be_cut(piece.item):
                self._waiting.append(piece)
                continue
            at = next((i for i, left in enumerate(self._left) if _fits(piece, left)), None)
            row = None
            if at is None:
                if len(self._bins) >= self._open_rows:
                    fullest = self._fullest()
                    self._fill(fullest)
                    row = self._take(fullest)
                at = self._open()
            self._put(at, piece)
            if row:
                return row

    def drain(self) -> Row | None:
        """The next row at the end of a finite sequence: the oldest open bin, filled up; None when no bin is left."""
        if not self._bins and not self._waiting:
            return None
        if not self._bins:
            self._open()
        self._fill(0)
        return self._take(0) or self.drain()

    def snapshot(self) -> Snapshot:
        """The position after the last row. It is cheap, because rows are shared and never changed."""
        return Snapshot(self._cursor, tuple(self._waiting), tuple(self._bins))

    def restore(self, state: Mapping, reopen: bool = True) -> list[str]:
        """Continues exactly where `snapshot().to_json()` was taken, by reading the examples of the open bins again.

        Unless `reopen`, the lane continues behind the examples of the open bins, without them. Otherwise only those
        examples are left out that have changed since.

        Returns:
          One line about each example that should have been read again and was left out.
        """
        examples: dict[int, Item | Bad] = {}
        lost: list[str] = []

        def read(saved: Sequence, room: Callable[[Piece], bool]) -> Iterator[Piece]:
            for index, cuts, head in saved if reopen else ():
                if index not in examples:
                    examples[index] = self._example(index)
                item = examples[index]
                piece = None if isinstance(item, Bad) else _recut(item, index, cuts, head)
                if piece is not None and room(piece):
                    yield piece
                else:
                    lost.append(f"{item.name}: {item.error}" if isinstance(item, Bad) else f"example {index}: changed")

        self._cursor = int(state["cursor"])
        self._bins, self._left = [], []
        self._waiting = list(read(state["waiting"], lambda piece: self._has_room(piece.item)))
        for row in state["bins"]:
            at = self._open()
            for piece in read(row, lambda piece, at=at: _fits(piece, self._left[at])):
                self._put(at, piece)
            if not self._bins[at]:
                self._take(at)
        return lost

    def _has_room(self, item: Item) -> bool:
        """Whether the item fits in an empty row: all of it or, if items may be cut, its beginning."""
        if any(name not in self._budgets for name in item.cost):
            return False
        whole = all(count <= self._budgets[name] for name, count in item.cost.items())
        return whole or (self._split and item.split(self._budgets) is not None)

    def _next_piece(self) -> Piece:
        while True:
            index = self._cursor
            self._cursor += self._stride
            self.read += 1
            item = self._example(index)
            if isinstance(item, Bad):
                self._on_bad(item)
                continue
            if self._has_room(item):
                return Piece(index, (), False, item)
            self._on_bad(Bad(f"example {index}", f"takes {dict(item.cost)}, an empty row holds {self._budgets}"))

    def _to_fill(self) -> int | None:
        """The bin that should be filled up with waiting text now, if there is one."""
        if not self._waiting:
            return None
        text = self._waiting[0].item.cost.keys()
        if all(name in text for name in self._budgets):  # only text is packed, so any bin will do
            return 0 if self._bins else self._open()
        for at, (row, left) in enumerate(zip(self._bins, self._left, strict=True)):
            others = [piece.item.cost for piece in row if not piece.item.cost.keys() <= text]
            for name, room in left.items():
                if others and room * len(others) < sum(cost.get(name, 0) for cost in others):
                    return at
        for name, budget in self._budgets.items():
            if 2 * sum(piece.item.cost.get(name, 0) for piece in self._waiting) > self._open_rows * budget:
                return self._fullest() if self._bins else self._open()
        return None

    def _fill(self, at: int) -> bool:
        """Puts waiting text into a bin. Returns whether the bin is full: no further text goes into it."""
        left = self._left[at]
        while self._waiting:
            piece = self._waiting[0]
            if _fits(piece, left):
                self._put(at, self._waiting.pop(0))
                continue
            room = {name: left[name] for name in piece.item.cost}
            if self._bins[at] and min(room.values()) < self._min_piece:
                return True
            parts = piece.item.split(room)
            if parts is not None:
                cuts = (*piece.cuts, room)
                self._put(at, Piece(piece.index, cuts, True, parts[0]))
                self._waiting[0] = Piece(piece.index, cuts, False, parts[1])
                return True
            if self._bins[at]:
                return True
            self._waiting.pop(0)
            self._on_bad(Bad(f"example {piece.index}", f"cannot be cut to fit an empty row of {self._budgets}"))
        return False

    def _fullest(self) -> int:
        budgets = [(name, budget) for name, budget in self._budgets.items() if budget]
        room = [sum(left[name] / budget for name, budget in budgets) for left in self._left]
        return room.index(min(room))

    def _open(self) -> int:
        self._bins.append(())
        self._left.append(dict(self._budgets))
        return len(self._bins) - 1

    def _put(self, at: int, piece: Piece) -> None:
        self._bins[at] += (piece,)
        for name, count in piece.item.cost.items():
            self._left[at][name] -= count

    def _take(self, at: int) -> Row:
        self._left.pop(at)
        return self._bins.pop(at)


def _fits(piece: Piece, left: Mapping[str, int]) -> bool:
    # A loop, not all(...): this runs for every open bin and document.
    for name, count in piece.item.cost.items():  # noqa: SIM110
        if count > left.get(name, -1):
            return False
    return True


def _can_be_cut(item: Item) -> bool:
    return item.split({name: count - 1 for name, count in item.cost.items()}) is not None


def _recut(item: Item, index: int, cuts: Sequence[Mapping[str, int]], head: bool) -> Piece | None:
    """The part of an item that the cuts leave; None if it cannot be cut like this, because it has changed."""
    for number, cut in enumerate(cuts):
        parts = item.split(cut)
        if parts is None:
            return None
        item = parts[0] if head and number == len(cuts) - 1 else parts[1]
    return Piece(index, tuple(cuts), head, item)
