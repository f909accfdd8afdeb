"""Draws scenes and clips of a split by chance. The same names give the same draws on any machine."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from transfusion.data.scenes import words
from transfusion.data.scenes.graph import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing, box_of, relations, split_of
from transfusion.data.scenes.moving import Clip, clip_split, starts
from transfusion.data.scenes.words import NUMBERS, Says

_T = TypeVar("_T")
World = Callable[[Scene], Scene]
_MOST_TRIES = 100_000
_SCENES_TRIED = 2000  # for a caption: a tenth of all scenes are in the test split
BACKGROUND_NAMES, COLOUR_NAMES, SIZE_NAMES = tuple(BACKGROUNDS), tuple(COLOURS), tuple(SIZES)


class Chance:
    """Random choices that depend on the given names alone, in every version of Python."""

    def __init__(self, *names: object):
        self._next = random.Random("/".join(map(str, names))).random

    def of(self, options: Sequence[_T]) -> _T:
        """One of the options, all alike."""
        return options[int(self._next() * len(options))]

    def some(self, options: Sequence[_T], number: int) -> list[_T]:
        """So many different options, in a random order."""
        left = list(options)
        return [left.pop(int(self._next() * len(left))) for _ in range(number)]

    def yes(self) -> bool:
        return self._next() < 0.5


def until(draw: Callable[[], _T | None], good: Callable[[_T], bool]) -> _T:
    """Draws until something is good; draws that are None are not.

    Raises:
      RuntimeError: if nothing ever is, which is a fault of the caller's rule.
    """
    found = within(_MOST_TRIES, draw, good)
    if found is None:
        raise RuntimeError("no draw fits the split")
    return found


def within(tries: int, draw: Callable[[], _T | None], good: Callable[[_T], bool]) -> _T | None:
    """The first of so many draws that is good; None if none is."""
    for _ in range(tries):
        found = draw()
        if found is not None and good(found):
            return found
    return None


def home(split: str) -> str:
    """The split whose scenes a split has."""
    return "test" if split == "paraphrases" else split


def belongs(scenes: Sequence[Scene], split: str) -> bool:
    """Whether a record with these scenes belongs to a split.

    All scenes of a training record are those of 'train'. The last scene of another record, which is the one that is
    drawn or asked about, is of its split, so that no training record shows it; those before it may be known.
    """
    wanted, (*before, last) = home(split), map(split_of, scenes)
    return last == wanted and all(one in {"train", wanted, "test" if wanted != "train" else wanted} for one in before)


def thing(chance: Chance, cell: int, shape: str = "", colour: str = "") -> Thing:
    """A thing in a cell; what is not given is drawn."""
    return Thing(shape or chance.of(SHAPES), colour or chance.of(COLOUR_NAMES), chance.of(SIZE_NAMES), cell)


def scene_of(chance: Chance, kinds: Sequence[tuple[str, str]]) -> Scene:
    """A scene with things of these shapes and colours ('': drawn), somewhere."""
    cells = chance.some(range(9), len(kinds))
    things = tuple(thing(chance, cell, *kind) for cell, kind in zip(cells, kinds, strict=True))
    return Scene(things, chance.of(BACKGROUND_NAMES))


def plainly(scene: Scene) -> Scene:
    """The scene with large things before white: the world that small models can learn in minutes."""
    return Scene(tuple(dataclasses.replace(thing, size="large") for thing in scene.things), "white")


def scene_for(chance: Chance, skill: str, says: Says, split: str, world: World | None = None) -> Scene | None:
    """A scene of a split that shows what a caption of a skill says, and nothing else; `world` changes what no caption
    of a skill says. None: in a small world all such scenes are in another split."""

    def scene(kinds: Sequence[tuple[str, str]]) -> Scene:
        made = scene_of(chance, kinds)
        return world(made) if world else made

    def draw() -> Scene | None:
        if skill != "position":
            return scene(KINDS[skill](says))
        first, relation, second = says
        made = scene([(first, ""), (second, "")])
        one, other = (next(t for t in made.things if t.shape == shape) for shape in (first, second))
        return made if relation in relations(box_of(one), box_of(other)) else None

    return within(_SCENES_TRIED, draw, lambda scene: split_of(scene) == home(split))


# The shapes and colours of the things that a caption asks for.
KINDS: dict[str, Callable[[Says], list[tuple[str, str]]]] = {
    "single": lambda says: [(says[0], "")],
    "two": lambda says: [(says[0], ""), (says[1], "")],
    "counting": lambda says: [(_singular(says[1]), "")] * NUMBERS.index(says[0]),
    "colours": lambda says: [(says[1], says[0])],
    "position": lambda says: [(says[0], ""), (says[2], "")],
    "binding": lambda says: [(says[1], says[0]), (says[3], says[2])],
}


def _singular(shapes: str) -> str:
    return next(shape for shape in SHAPES if words.plural(shape) == shapes)


def any_scene(chance: Chance, split: str, least: int, most: int, world: World | None = None) -> Scene:
    """A scene of a split with `least` to `most` things, but two or more if the split holds out counts; `world` changes
    it."""
    number = chance.of(range(max(least, 2) if split == "counts" else least, most + 1))

    def draw() -> Scene:
        scene = some_scene(chance, number)
        return world(scene) if world else scene

    return until(draw, lambda scene: split_of(scene) == home(split))


def some_scene(chance: Chance, number: int, different: bool = False) -> Scene:
    """A scene of any split with so many things; whether all their shapes and all their colours are different."""
    if not different:
        return scene_of(chance, [("", "")] * number)
    shapes, colours = chance.some(SHAPES, number), chance.some(COLOUR_NAMES, number)
    return scene_of(chance, list(zip(shapes, colours, strict=True)))


def clip_for(chance: Chance, says: Says, split: str) -> Clip:
    """A clip of a split that shows what a caption says."""
    shape, colour, motion, turned = says
    ys, xs = starts(motion)
    return until(
        lambda: Clip(shape, colour, motion, chance.of(ys), chance.of(xs), turned, chance.of(BACKGROUND_NAMES)),
        lambda clip: clip_split(clip) == home(split),
    )
