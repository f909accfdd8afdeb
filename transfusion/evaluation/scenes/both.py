"""What a model reads in its own drawings, and whether one ability helps the other.

All of this is of one set of facts (`facts.Facts`), which the model has drawn and read:

- own_pictures: drawing right or wrong, and reading that very drawing right or wrong, by what the parser finds in it.
- both_directions: drawing a fact, and reading it in the true picture (GapEval, arXiv 2602.02140).
- consistent: it reads in its drawing what it was asked to draw (internal consistency in Unison).
- cycle: the caption that it writes of its drawing does not contradict the one that it drew.
- described: the captions that it writes of true pictures are true.
- guided: understanding guides generation. It draws up to `CANDIDATES` pictures and keeps the first in which it reads
  what was asked: the share of right ones, that of first ones, and the difference.
- imagined: generation guides understanding. A caption is told and asked about. It answers from its own drawing of the
  caption, or from the words alone, which no training example shows: both shares, and the difference.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.data.scenes import judge, words
from transfusion.data.scenes.parse import Parsed
from transfusion.data.scenes.questions import FACTS
from transfusion.data.scenes.render import render
from transfusion.data.scenes.tasks import Drawn
from transfusion.evaluation.intervals import Score, bootstrap, wilson
from transfusion.evaluation.scenes import tasks
from transfusion.evaluation.scenes.facts import Facts

CANDIDATES = 3


def share(right: np.ndarray | Sequence[bool]) -> Score:
    return wilson(int(np.sum(right)), np.size(right))


def quarters(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> dict[str, Score]:
    """The 2 x 2 table of two abilities over the same records, as shares."""
    a, b = names
    return {
        "both": share(first & second), f"{a}_only": share(first & ~second), f"{b}_only": share(~first & second),
        "neither": share(~first & ~second),
    }  # fmt: skip


def measure(run: Any, facts: Facts, seed: int = 0, **sampler: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Everything that the facts of a model that draws and reads can tell; and in which drawings it reads what was asked
    for, bool [K, N]."""
    shown = zip(facts.questions, facts.pictures, strict=True)
    said = tasks.answers(run, [tasks.asked(one, picture) for one, picture in shown])
    consistent = np.array(said) == np.array([one.texts[1] for one in facts.questions])
    drawn, read = facts.drawn.ravel(), facts.read.ravel()
    found = {
        "own_pictures": own_pictures(facts, said),
        "both_directions": quarters(drawn, read, ("drawn", "read")),
        "consistent": share(consistent),
        "cycle": share(cycle(run, facts)),
        "described": share(described(run, facts)),
        "guided": guided(run, facts, consistent, seed, **sampler),
        "imagined": imagined(run, facts, consistent),
    }
    return found, consistent.reshape(facts.drawn.shape)


def own_pictures(facts: Facts, said: list[str]) -> dict[str, Score]:
    """The 2 x 2 table on the model's own drawings; those that are no scenes are counted apart."""
    scenes = np.array([not shown.faults for shown in facts.parsed])
    true = np.array([
        FACTS[one.kind].true(one.says, answer, shown.scene)
        for one, answer, shown in zip(facts.questions, said, facts.parsed, strict=True)
    ])  # fmt: skip
    found = {"no_scene": share(~scenes)}
    if scenes.any():
        found |= quarters(facts.drawn.ravel()[scenes], true[scenes], ("drawn", "read"))
    return found


def cycle(run: Any, facts: Facts) -> list[bool]:
    """Whether the caption of each drawing agrees with the one that was drawn."""
    read = [words.understood(caption) for caption in run.caption(list(facts.pictures))]
    return [
        said is not None and said[0] != "clips" and judge.agree((one.kind, one.says), said)
        for one, said in zip(facts.captions, read, strict=True)
    ]


def described(run: Any, facts: Facts) -> list[bool]:
    """Whether the caption of each true picture says what is true of it, and all things that there are."""
    written = run.caption([render(one.scenes[0], facts.pixels) for one in facts.captions])
    return [true_of(caption, one) for caption, one in zip(written, facts.captions, strict=True)]


def true_of(caption: str, one: Drawn) -> bool:
    said = words.understood(caption)
    if said is None or said[0] not in words.SKILLS:
        return False
    return all(judge.atoms(*said, Parsed(one.scenes[0], (), 0.0)).values())


def guided(run: Any, facts: Facts, consistent: np.ndarray, seed: int, **sampler: Any) -> dict[str, Score]:
    """How often a drawing is right if the model chooses among its own by reading them."""
    first = facts.drawn.ravel()
    right, left = first.copy(), np.flatnonzero(~consistent)
    for candidate in range(1, CANDIDATES):
        if not len(left):
            break
        asked = [facts.captions[i] for i in left]
        pictures = tasks.draw(run, [one.texts[0] for one in asked], **sampler | {"seed": seed + candidate})
        questions = [facts.questions[i] for i in left]
        said = tasks.answers(run, [tasks.asked(q, picture) for q, picture in zip(questions, pictures, strict=True)])
        agrees = np.array([answer == q.texts[1] for answer, q in zip(said, questions, strict=True)])
        shown = [judge.shows(one.kind, one.says, picture) for one, picture in zip(asked, pictures, strict=True)]
        right[left[agrees]] = np.array(shown)[agrees]
        left = left[~agrees]
    return {"first": share(first), "kept": share(right), "gain": bootstrap(right.astype(float) - first)}


def imagined(run: Any, facts: Facts, consistent: np.ndarray) -> dict[str, Score]:
    """How often a question about a told scene is answered rightly, by way of a drawing and from the words."""
    told = [f"{one.texts[0]} {q.texts[0]} " for one, q in zip(facts.captions, facts.questions, strict=True)]
    said = np.array(tasks.answers(run, told))
    plain = said == np.array([one.texts[1] for one in facts.questions])
    gain = bootstrap(consistent.astype(float) - plain)
    return {"from_drawing": share(consistent), "from_words": share(plain), "gain": gain}
