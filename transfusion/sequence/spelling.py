"""How the codes of a discrete codec are spelled with ids of the text's own vocabulary.

Shape letters: T steps or frames, h rows, w columns of an item's codes; n its ids.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from transfusion.errors import UsageError

CODE = -1  # stands for any code in a template
SIZE_CHARACTERS = "0123456789*,"

Grid = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Spelling:
    """Code i is the id `first` + i; codes stand in raster order. Chameleon (arXiv 2405.09818) has nothing else, Emu3
    (arXiv 2409.18869, section 2.2) the item's size before them, and ends of rows and of frames between them.

    Attributes:
      codes: how many there are; 0: nothing is spelled.
      first: id of code 0.
      grids: the sizes of an item: (h, w) of an image, (T,) of a sound, (T, h, w) of a clip. With `size` the decoder
        lets the model choose among them, else it draws the first.
      weight: factor of the loss of a code (Emu3: 0.5); everything else that is predicted counts 1.
      size: ids of the twelve characters '0123456789*,' that spell the size: '{h}*{w}', of a clip '{h}*{w},{T}', of a
        sound '{T}'; () spells no size.
      size_end: id after the size.
      row_end, frame_end: ids after each row and after each frame; -1: none. An image has one frame, a sound one row.
    """

    codes: int = 0
    first: int = 0
    grids: tuple[Grid, ...] = ()
    weight: float = 1.0
    size: tuple[int, ...] = ()
    size_end: int = -1
    row_end: int = -1
    frame_end: int = -1

    def __post_init__(self):
        if not self.codes:
            return
        if self.codes < 0 or self.first < 0 or self.weight < 0:
            raise UsageError("spelling: codes, first and weight must not be negative")
        if not self.grids or any(not 1 <= len(g) <= 3 or min(g) < 1 for g in self.grids):
            raise UsageError(f"spelling: grids are one or more sizes of 1 to 3 positive sides, not {self.grids}")
        if len({len(grid) for grid in self.grids}) > 1:
            raise UsageError(f"spelling: grids of one kind of item have equally many sides, not {self.grids}")
        if self.size and (len(self.size) != len(SIZE_CHARACTERS) or self.size_end < 0):
            raise UsageError(f"spelling: size needs the ids of the characters {SIZE_CHARACTERS!r}, and size_end")

    @property
    def last(self) -> int:
        """The highest of its ids; -1 of nothing."""
        ids = (*self.size, self.size_end, self.row_end, self.frame_end)
        return max(self.first + self.codes - 1, *ids) if self.codes else -1

    def moved(self, move: Callable[[int], int]) -> "Spelling":
        """The same in the ids of a tokenizer: `move` takes an id of a config to one of these."""
        if not self.codes:
            return self
        ids = {field: move(getattr(self, field)) for field in ("first", "size_end", "row_end", "frame_end")}
        return dataclasses.replace(self, size=tuple(map(move, self.size)), **ids)

    def template(self, grid: Grid) -> tuple[int, ...]:
        """The ids of an item of this size, `CODE` for its codes."""
        *frames, height, width = (1, *grid)[-3:] if len(grid) > 1 else (1, *grid)
        row = [CODE] * width + ([self.row_end] if self.row_end >= 0 else [])
        frame = row * height + ([self.frame_end] if self.frame_end >= 0 else [])
        return (*self._size(grid), *frame * (frames[0] if frames else 1))

    def _size(self, grid: Grid) -> list[int]:
        if not self.size:
            return []
        said = "*".join(map(str, grid[-2:])) + (f",{grid[0]}" if len(grid) == 3 else "")
        return [*(self.size[SIZE_CHARACTERS.index(c)] for c in said), self.size_end]

    def spell(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes int [*grid] -> ids int32 [n], and the factor of each one's loss float32 [n].

        Raises:
          UsageError: if their size is none of `grids`, or a code is out of range.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise UsageError(f"this model reads codes, whole numbers, not {codes.dtype}: set codec.kind")
        if codes.shape not in self.grids:
            raise UsageError(f"codes of shape {codes.shape} fit none of the sizes {', '.join(map(str, self.grids))}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise UsageError(f"a code is outside of 0 to {self.codes - 1}")
        ids = np.array(self.template(codes.shape), np.int32)
        visual = ids == CODE
        ids[visual] = codes.ravel() + self.first
        return ids, np.where(visual, np.float32(self.weight), np.float32(1))

    def parse(self, ids: np.ndarray) -> np.ndarray:
        """Ids [n] -> codes int32 [*grid]; inverse of `spell`.

        Raises:
          UsageError: if they spell no item.
        """
        ids = np.asarray(ids)
        code = (ids >= self.first) & (ids < self.first + self.codes)
        for grid in self.grids:
            template = np.array(self.template(grid))
            if len(template) == len(ids) and np.where(code, CODE, ids).tolist() == template.tolist():
                return (ids[code] - self.first).astype(np.int32).reshape(grid)
        raise UsageError(f"{len(ids)} ids that spell no item of this model")
