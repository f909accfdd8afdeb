"""What is in a scene, which scenes a split has, and where things stand to each other.

A picture has 3 x 3 cells, each with at most one thing. Lengths are in 32nds of a picture's side, from its upper left
corner.
"""

import dataclasses
from collections import Counter

from transfusion.data.hold_out import fraction

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (250, 220, 40),
    "purple": (170, 40, 200),
    "cyan": (60, 210, 230),
}
SIZES: dict[str, float] = {"small": 2.7, "large": 4.4}  # radius
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255,) * 3, "grey": (128,) * 3, "black": (0,) * 3}
CELLS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
MARGIN, CELL = 1.0, 10.0

SPLITS = ("train", "test", "pairs", "counts", "positions", "paraphrases")
TEST_SHARE = 0.1
# What no scene of 'train' and 'test' shows. Each shape and each colour lacks one partner, so that both are known.
HELD_PAIRS = frozenset(zip(COLOURS, SHAPES, strict=True))
HELD_POSITIONS = frozenset((shape, (4 * number + 1) % 9) for number, shape in enumerate(SHAPES))
HELD_COUNTS = frozenset((2 + number % 3, shape) for number, shape in enumerate(SHAPES))


@dataclasses.dataclass(frozen=True)
class Thing:
    """A thing of a scene: a shape of `SHAPES`, a colour of `COLOURS`, a size of `SIZES`, and the number of its cell."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x)."""
        return centre_of(self.cell)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Things, in the order of their cells, before a background of `BACKGROUNDS`.

    Raises:
      ValueError: if two things are in one cell.
    """

    things: tuple[Thing, ...]
    background: str = "white"

    def __post_init__(self):
        object.__setattr__(self, "things", tuple(sorted(self.things, key=lambda thing: thing.cell)))
        if len({thing.cell for thing in self.things}) < len(self.things):
            raise ValueError("two things are in one cell")

    @property
    def key(self) -> str:
        """A name that no other scene has. Its hash decides between 'train' and 'test'."""
        return "|".join((self.background, *(f"{t.cell} {t.size} {t.colour} {t.shape}" for t in self.things)))


def centre_of(cell: int) -> tuple[float, float]:
    """(y, x) of the middle of a cell."""
    return MARGIN + CELL * (cell // 3 + 0.5), MARGIN + CELL * (cell % 3 + 0.5)


def held(scene: Scene) -> frozenset[str]:
    """The held-out splits of which the scene shows something."""
    counts = Counter(thing.shape for thing in scene.things)
    shown = {
        "pairs": any((thing.colour, thing.shape) in HELD_PAIRS for thing in scene.things),
        "counts": any((number, shape) in HELD_COUNTS for shape, number in counts.items()),
        "positions": any((thing.shape, thing.cell) in HELD_POSITIONS for thing in scene.things),
    }
    return frozenset(name for name, found in shown.items() if found)


def side_of(key: str) -> str:
    """'test' for a tenth of all names, chosen by hash, else 'train'."""
    return "test" if fraction(key) < TEST_SHARE else "train"


def split_of(scene: Scene) -> str:
    """The split that a scene belongs to; '' if it shows what two of the splits hold out.

    The split 'paraphrases' has the scenes of 'test', in words that training never has.
    """
    found = held(scene)
    if found:
        return next(iter(found)) if len(found) == 1 else ""
    return side_of(scene.key)


Box = tuple[float, float, float, float]
"""y0, x0, y1, x1."""

# Reach of each shape from its centre, in radii: up, down, and to each side.
REACH = {
    "circle": (1.0, 1.0, 1.0), "square": (0.85, 0.85, 0.85), "triangle": (0.95, 0.8, 1.0), "cross": (1.0, 1.0, 1.0),
    "diamond": (1.1, 1.1, 1.1), "ring": (1.0, 1.0, 1.0),
}  # fmt: skip


def box_of(thing: Thing) -> Box:
    """The smallest box round a thing."""
    (y, x), radius, (up, down, aside) = thing.centre, SIZES[thing.size], REACH[thing.shape]
    return y - up * radius, x - aside * radius, y + down * radius, x + aside * radius


RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relations(first: Box, second: Box) -> frozenset[str]:
    """Where `first` stands to `second`, by the decision rule of GenEval (arXiv 2310.11513, section 3.2).

    Along each axis the distance of the centres is shortened by a tenth of both extents. A relation holds if what is
    left is more than half of the distance of the centres, so that two may hold on a diagonal, and none for things on
    top of each other.
    """
    offsets, left = [], []
    for axis in (0, 1):
        (low, high), (low2, high2) = first[axis::2], second[axis::2]
        offset = (low + high - low2 - high2) / 2
        offsets.append(offset)
        rest = max(abs(offset) - 0.1 * (high - low + high2 - low2), 0.0)
        left.append(rest if offset > 0 else -rest)
    length = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    if not any(left):
        return frozenset()
    down, right = left[0] / length, left[1] / length
    shown = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return frozenset(name for name, found in shown.items() if found)
