"""Captions: what they say, in which words, and how many bits one has.

A caption of a skill is drawn evenly: first what it says (all that the split allows, alike), then the words. No two of
these give the same text, so that a caption has exactly `bits` bits: no model of captions can need fewer on average.
"""

import functools
import itertools
import math
from collections.abc import Iterable

from transfusion.data.scenes import moving
from transfusion.data.scenes.graph import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    HELD_COUNTS,
    HELD_PAIRS,
    HELD_POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    box_of,
    relations,
)

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOST_LISTED = 3  # things of a caption that lists all of them
Says = tuple[str, ...]
"""What a caption says: the values of the fields in the templates of its skill."""

# The words of each skill: those of training first, then those that the split 'paraphrases' has alone.
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single": (("a {}", "a photo of a {}", "there is a {}", "this is a {}"), ("here is a {}", "a picture with a {}")),
    "two": (
        ("a {} and a {}", "a photo of a {} and a {}", "there is a {} beside a {}", "a {} together with a {}"),
        ("here are a {} and a {}", "a {}, and also a {}"),
    ),
    "counting": (("{} {}", "a photo of {} {}", "there are {} {}", "exactly {} {}"), ("here are {} {}", "{} {} in all")),
    "colours": (
        ("a {} {}", "a photo of a {} {}", "there is a {} {}", "this is a {} {}"),
        ("here is a {} {}", "a picture with a {} {}"),
    ),
    "position": (
        ("a {} {} a {}", "a photo of a {} {} a {}", "there is a {} {} a {}", "the {} is {} the {}"),
        ("here is a {} {} a {}", "the {} stands {} the {}"),
    ),
    "binding": (
        ("a {} {} and a {} {}", "a photo of a {} {} and a {} {}", "there is a {} {} beside a {} {}")
        + ("a {} {} together with a {} {}",),
        ("here are a {} {} and a {} {}", "a {} {}, and also a {} {}"),
    ),
    "listed": (("{}", "a picture: {}", "there is {}", "this shows {}"), ("here is {}", "we see {}")),
    "moves": (
        ("a {} {} moves {}", "the {} {} is moving {}", "a {} {} goes {}", "the {} {} travels {}"),
        ("here a {} {} moves {}", "see the {} {} go {}"),
    ),
    "appears": (
        ("a {} {} appears", "the {} {} comes into view", "a {} {} shows up", "suddenly there is a {} {}"),
        ("here a {} {} appears", "see the {} {} show up"),
    ),
    "vanishes": (
        ("a {} {} vanishes", "the {} {} disappears", "a {} {} goes away", "suddenly the {} {} is gone"),
        ("here a {} {} vanishes", "see the {} {} go away"),
    ),
    "turns": (
        ("a {} {} turns {}", "the {} {} becomes {}", "a {} {} changes to {}", "the {} {} is now {}"),
        ("here a {} {} turns {}", "see the {} {} become {}"),
    ),
}
SKILLS = ("single", "two", "counting", "colours", "position", "binding")
"""Those of GenEval."""


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def templates(skill: str, split: str) -> tuple[str, ...]:
    return TEMPLATES[skill][split == "paraphrases"]


@functools.cache
def all_says(skill: str, split: str) -> tuple[Says, ...]:
    """All that captions of a skill (one of `SKILLS`) can say in a split.

    A split that holds out pairs or counts says only what shows one, where the skill can say it. A split that holds out
    positions says only what can be true with one of them.
    """
    pairs, alone = split == "pairs", tuple((shape,) for shape in SHAPES)
    two = tuple(itertools.permutations(SHAPES, 2))

    def held(*things: tuple[str, str]) -> bool:
        return bool({*things} & HELD_PAIRS) == pairs

    def count(number: int, shape: str) -> bool:
        return ((number, shape) in HELD_COUNTS) == (split == "counts")

    numbers = ((NUMBERS[n], plural(shape)) for n in (2, 3, 4) for shape in SHAPES if count(n, shape))
    placed = ((a, relation, b) for a, b in two for relation in RELATIONS)
    placed = (says for says in placed if split != "positions" or _with_held_position(*says))
    bound = ((ca, a, cb, b) for a, b in two for ca, cb in itertools.permutations(COLOURS, 2) if held((ca, a), (cb, b)))
    coloured = ((colour, shape) for colour in COLOURS for shape in SHAPES if held((colour, shape)))
    found: dict[str, Iterable[Says]] = {
        "single": alone, "two": two, "counting": numbers, "colours": coloured, "position": placed, "binding": bound,
    }  # fmt: skip
    return tuple(found[skill])


def _with_held_position(first: str, relation: str, second: str) -> bool:
    """Whether a relation can hold while one of the things is where it never is in training."""
    for one, other in itertools.permutations(range(9), 2):
        boxes = [box_of(Thing(shape, "", "small", cell)) for shape, cell in ((first, one), (second, other))]
        if {(first, one), (second, other)} & HELD_POSITIONS and relation in relations(*boxes):
            return True
    return False


def skills_of(split: str) -> tuple[str, ...]:
    """The skills whose captions a split has. Held-out counts are counted, so that the others have none of them."""
    return ("counting",) if split == "counts" else SKILLS


def clip_skill(says: Says) -> str:
    return "moves" if says[2] in moving.STEPS else says[2]


def clip_caption(says: Says, template: str) -> str:
    """The caption of a clip, of which `says` is as `moving.Clip.says`."""
    shape, colour, motion, turned = says
    last = (motion,) if motion in moving.STEPS else (turned,) if turned else ()
    return template.format(colour, shape, *last)


def thing_words(thing: Thing) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape} at the {CELLS[thing.cell]}"


def list_words(scene: Scene) -> str:
    """All things of a scene, from the upper left one to the lower right one."""
    *before, last = map(thing_words, scene.things)
    return f"{', '.join(before)} and {last}" if before else last


# --- bits -------------------------------------------------------------------------------------------------------------


def bits(task: str, split: str = "train") -> float:
    """The entropy of a caption, in bits: the mean of -log2 of its probability.

    The rule that keeps a tenth of the scenes apart by hash changes nothing, because other scenes have the same caption,
    except for 'listed': there the entropy is that of 'train' and 'test' together, which no model can tell apart.

    Args:
      task: a skill of `SKILLS`, 'captions' (all skills, alike), 'listed' or 'clips'.
      split: one of `SPLITS`; of 'listed', 'train', 'test' or 'paraphrases'.

    Raises:
      ValueError: if it is not known.
    """
    if task == "listed" and split in ("pairs", "counts", "positions"):
        raise ValueError(f"the bits of captions that list all things are not known for the split {split!r}")
    if task == "captions":
        skills = skills_of(split)
        return math.log2(len(skills)) + sum(bits(skill, split) for skill in skills) / len(skills)
    if task == "clips":
        return math.log2(len(moving.all_says("test" if split == "paraphrases" else split))) + math.log2(
            len(templates("moves", split))
        )
    words = math.log2(len(templates(task, split)))
    if task == "listed":
        numbers = range(1, MOST_LISTED + 1)
        return math.log2(MOST_LISTED) + sum(math.log2(_lists(n)) for n in numbers) / MOST_LISTED + words
    return math.log2(len(all_says(task, split))) + words


@functools.cache
def _lists(number: int) -> int:
    """How many scenes of so many things show nothing that is held out, apart from their backgrounds."""
    found = 0
    for cells in itertools.combinations(range(9), number):
        for shapes in itertools.product(SHAPES, repeat=number):
            placed = not any(place in HELD_POSITIONS for place in zip(shapes, cells, strict=True))
            found += placed and not any((shapes.count(shape), shape) in HELD_COUNTS for shape in shapes)
    return found * ((len(COLOURS) - 1) * len(SIZES)) ** number


# --- reading captions -------------------------------------------------------------------------------------------------


@functools.cache
def _texts() -> dict[str, tuple[str, Says]]:
    """Every caption of the skills and of clips, and what it says."""
    found: dict[str, tuple[str, Says]] = {}
    for skill in SKILLS:
        says = {said: None for split in ("train", "pairs", "counts") for said in all_says(skill, split)}
        for said, template in itertools.product(says, itertools.chain(*TEMPLATES[skill])):
            found[template.format(*said)] = (skill, said)
    for said in (*moving.all_says("train"), *moving.all_says("pairs")):
        for template in itertools.chain(*TEMPLATES[clip_skill(said)]):
            found[clip_caption(said, template)] = ("clips", said)
    return found


def understood(caption: str) -> tuple[str, Says] | None:
    """The skill of a caption ('clips' for one of a clip) and what it says; None if it is no caption of ours."""
    return _texts().get(caption.strip())


def understood_list(caption: str) -> Scene | None:
    """The scene of a caption that lists all things, before a background that it does not say; None if it is none."""
    for template in itertools.chain(*TEMPLATES["listed"]):
        before = template.removesuffix("{}")
        if before and caption.startswith(before):
            caption = caption.removeprefix(before)
    things = [_understood_thing(part) for part in caption.replace(" and a ", ", a ").split(", ")]
    if not all(things) or len({thing.cell for thing in things}) < len(things):
        return None
    return Scene(tuple(things), next(iter(BACKGROUNDS)))


def _understood_thing(text: str) -> Thing | None:
    words, _, place = text.strip().partition(" at the ")
    article, *kinds = words.split(" ")
    if article != "a" or len(kinds) != 3 or place not in CELLS:
        return None
    size, colour, shape = kinds
    known = size in SIZES and colour in COLOURS and shape in SHAPES
    return Thing(shape, colour, size, CELLS.index(place)) if known else None
