"""The rotary positions of an item's tokens: a table of rules, which a run of the layout table names.

A document has a running index. Text takes the next index for each token; what an item takes, its rule says.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Position:
    """A rule for the rotary positions of one item.

    Attributes:
      one: the whole item has one index, which an opener and a closer inside its span share.
      placed: a token's place in the item is added to its index, on the axes of space and time.
      moves: what follows the item has the next index; else the item takes none, and what follows stands where it began.
    """

    one: bool
    placed: bool
    moves: bool

    def at(self, index: int, places: np.ndarray, axes: int) -> np.ndarray:
        """The positions [n, A] of an item's tokens.

        Args:
          index: the running index where the item begins.
          places: [n, S] place of each token in the item; the time of a series is added to the first axis, (y, x) or
            (t, y, x) to the last ones.
          axes: A.
        """
        n, sides = places.shape
        line = np.full(n, index) if self.one or self.placed else np.arange(index, index + n)
        position = np.repeat(line[:, None], axes, axis=1)
        if self.placed:
            position[:, slice(1) if sides == 1 else slice(-sides, None)] += places
        return position

    def extent(self, places: np.ndarray) -> int:
        """By how much an item's tokens alone move the running index."""
        if self.one:
            return 0
        return int(places.max()) + 1 if self.placed else len(places)

    def behind(self, start: int, index: int) -> int:
        """The running index behind an item that began at `start` and whose tokens brought it to `index`."""
        return index + self.one if self.moves else start


POSITIONS: dict[str, Position] = {
    "advance": Position(one=False, placed=False, moves=True),
    "advance_hold": Position(one=False, placed=False, moves=False),
    "item": Position(one=True, placed=False, moves=True),
    "hold": Position(one=True, placed=False, moves=False),
    "grid": Position(one=False, placed=True, moves=True),
    "grid_hold": Position(one=False, placed=True, moves=False),
    "frame": Position(one=True, placed=True, moves=True),
    "frame_hold": Position(one=True, placed=True, moves=False),
}
