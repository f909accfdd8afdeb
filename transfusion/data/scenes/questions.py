"""Questions about scenes, with answers of a few letters.

`QUESTIONS` is the table of kinds of questions about any scene. Answers are even where the picture does not decide: half
of the questions that ask yes or no are answered yes, so that who does not look is right as often as chance (`blind`).

`FACTS` has a question for each skill of captions: it asks what the caption of a picture says, so that one fact is known
in both directions, from words to picture and from picture to words (GapEval, arXiv 2602.02140).
"""

import dataclasses
from collections.abc import Callable

from transfusion.data.scenes.draws import COLOUR_NAMES, SIZE_NAMES, Chance
from transfusion.data.scenes.graph import CELLS, OPPOSITE, RELATIONS, SHAPES, Scene, box_of, relations
from transfusion.data.scenes.words import NUMBERS, Says, plural


@dataclasses.dataclass(frozen=True)
class Question:
    """A kind of question.

    Attributes:
      words: how it is asked: the words of training, then those that the split 'paraphrases' has alone.
      draw: the values of the words' fields and the answer; None if the scene has no answer.
      blind: the share of right answers of the best guess that does not see the picture.
    """

    words: tuple[str, ...]
    draw: Callable[[Chance, Scene], tuple[tuple[str, ...], str] | None]
    blind: float


def _alone(scene: Scene, name: str) -> list[str]:
    """The values of a field ('shape' or 'colour') that one thing alone has."""
    values = [getattr(thing, name) for thing in scene.things]
    return [value for value in values if values.count(value) == 1]


def _of_one(
    known: str, asked: Callable[[object], str]
) -> Callable[[Chance, Scene], tuple[tuple[str, ...], str] | None]:
    """A question about the only thing with some shape or colour."""

    def draw(chance: Chance, scene: Scene) -> tuple[tuple[str, ...], str] | None:
        if not (values := _alone(scene, known)):
            return None
        value = chance.of(values)
        return (value,), asked(next(thing for thing in scene.things if getattr(thing, known) == value))

    return draw


def _count(chance: Chance, scene: Scene) -> tuple[tuple[str, ...], str]:
    shape = chance.of(SHAPES) if chance.yes() else chance.of(scene.things).shape
    return (plural(shape),), NUMBERS[sum(thing.shape == shape for thing in scene.things)]


def _exists(chance: Chance, scene: Scene) -> tuple[tuple[str, ...], str]:
    """No: the colour of one thing with the shape of another, where there are such, or else anything."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    if chance.yes():
        return chance.of(sorted(there)), "yes"
    mixed = sorted({(colour, shape) for colour, _ in there for _, shape in there} - there)
    return chance.of(mixed or [(c, s) for c in COLOUR_NAMES for s in SHAPES if (c, s) not in there]), "no"


def _relation(chance: Chance, scene: Scene) -> tuple[tuple[str, ...], str] | None:
    """No: the opposite holds."""
    alone = [thing for thing in scene.things if thing.shape in _alone(scene, "shape")]
    if len(alone) < 2:
        return None
    first, second = chance.some(alone, 2)
    relation = chance.of([name for name in RELATIONS if name in relations(box_of(first), box_of(second))])
    opposite = OPPOSITE[relation]
    yes = chance.yes()
    return (first.shape, relation if yes else opposite, second.shape), "yes" if yes else "no"


QUESTIONS: dict[str, Question] = {
    "colour": Question(
        ("what colour is the {}?", "which colour has the {}?", "name the colour of the {}."),
        _of_one("shape", lambda thing: thing.colour),
        1 / len(COLOUR_NAMES),
    ),
    "shape": Question(
        ("what is {}?", "which shape is {}?", "name the shape that is {}."),
        _of_one("colour", lambda thing: thing.shape),
        1 / len(SHAPES),
    ),
    "place": Question(
        ("where is the {}?", "in which place is the {}?", "name the place of the {}."),
        _of_one("shape", lambda thing: CELLS[thing.cell]),
        1 / len(CELLS),
    ),
    "size": Question(
        ("how large is the {}?", "what size is the {}?", "name the size of the {}."),
        _of_one("shape", lambda thing: thing.size),
        1 / len(SIZE_NAMES),
    ),
    "count": Question(("how many {} are there?", "what is the number of {}?", "count the {}."), _count, 0.5),
    "exists": Question(("is there a {} {}?", "do you see a {} {}?", "can a {} {} be seen?"), _exists, 0.5),
    "relation": Question(
        ("is the {} {} the {}?", "does the {} stand {} the {}?", "tell if the {} is {} the {}."), _relation, 0.5
    ),
}


def ask(chance: Chance, scene: Scene, split: str, kind: str = "") -> tuple[str, str, str]:
    """A question about a scene: its kind, its words, and the answer.

    Args:
      chance: decides.
      scene: has at least one thing.
      split: whose words are taken.
      kind: a key of `QUESTIONS`; '' draws one. Another one is drawn if the scene has no answer.
    """
    found = None
    while found is None:
        name = kind or chance.of([*QUESTIONS])
        kind, found = "", QUESTIONS[name].draw(chance, scene)
    *known, new = QUESTIONS[name].words
    values, answer = found
    return name, chance.of([new] if split == "paraphrases" else known).format(*values), answer


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fact:
    """The question to what captions of a skill say.

    Attributes:
      words: as `Question.words`.
      fields: the values of the words' fields.
      answer: what the caption says of it.
      true: whether an answer to the question is true of a scene.
      blind: the share of right answers of the best guess that does not see the picture, in the split 'test'.
    """

    words: tuple[str, ...]
    fields: Callable[[Says], tuple[str, ...]]
    answer: Callable[[Says], str]
    true: Callable[[Says, str, Scene], bool]
    blind: float


def _has(scene: Scene, shape: str, colour: str) -> bool:
    return any((thing.shape, thing.colour) == (shape, colour) for thing in scene.things)


def _stands(scene: Scene, first: str, relation: str, second: str) -> bool:
    """Whether some thing of the first shape has the relation to some of the second."""
    return any(
        relation in relations(box_of(one), box_of(other))
        for one in scene.things if one.shape == first for other in scene.things if other.shape == second
    )  # fmt: skip


_COLOUR = QUESTIONS["colour"].words
FACTS: dict[str, Fact] = {
    "single": Fact(
        ("which shape is it?", "what is there?", "name the shape."), lambda says: (), lambda says: says[0],
        lambda says, answer, scene: answer in {thing.shape for thing in scene.things}, 1 / 6,
    ),
    "two": Fact(
        ("what is there beside the {}?", "what stands with the {}?", "name what is with the {}."),
        lambda says: (says[0],), lambda says: says[1],
        lambda says, answer, scene: answer in {thing.shape for thing in scene.things} - {says[0]}, 1 / 5,
    ),
    # Of the three numbers, one is held out for each shape.
    "counting": Fact(
        QUESTIONS["count"].words, lambda says: (says[1],), lambda says: says[0],
        lambda says, answer, scene: answer == NUMBERS[sum(plural(t.shape) == says[1] for t in scene.things)], 1 / 2,
    ),
    "colours": Fact(
        _COLOUR, lambda says: (says[1],), lambda says: says[0],
        lambda says, answer, scene: _has(scene, says[1], answer), 1 / 5,
    ),
    # On a diagonal two relations hold, and either is right.
    "position": Fact(
        ("where is the {} from the {}?", "where does the {} stand to the {}?", "say where the {} is from the {}."),
        lambda says: (says[0], says[2]), lambda says: says[1],
        lambda says, answer, scene: _stands(scene, says[0], answer, says[2]), 0.36,
    ),
    "binding": Fact(
        _COLOUR, lambda says: (says[1],), lambda says: says[0],
        lambda says, answer, scene: _has(scene, says[1], answer), 1 / 5,
    ),
}  # fmt: skip


def ask_fact(chance: Chance, skill: str, says: Says, split: str) -> tuple[str, str]:
    """A question to what a caption of a skill says, and its answer; `split` decides the words."""
    fact = FACTS[skill]
    *known, new = fact.words
    words = chance.of([new] if split == "paraphrases" else known)
    return words.format(*fact.fields(says)), fact.answer(says)
