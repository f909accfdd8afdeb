"""What of a caption a picture shows, exactly: atoms as in GenEval 2 (arXiv 2512.16853), and the whole; and whether two
captions agree.

The skills, and the rules of counting, colours and relations, are those of GenEval (arXiv 2310.11513). It asks for no
more than the caption; here nothing else may be in the picture, because a caption of a skill names all that there is.
"""

import numpy as np

from transfusion.data.scenes.draws import KINDS
from transfusion.data.scenes.graph import OPPOSITE, Scene, box_of, relations
from transfusion.data.scenes.parse import Parsed, parse
from transfusion.data.scenes.words import Says, all_says

# How many captions of a skill, said in one way, are true of a picture of one: 'two' and 'binding' name their things in
# either order; of 'position' it is measured, because one or two relations hold (`experiments/scenes/controls.py`).
ALSO_TRUE = {"single": 1, "two": 2, "counting": 1, "colours": 1, "position": 2.87, "binding": 2}


def chance(skill: str, split: str) -> float:
    """How often a picture of some caption of a skill shows what another one says, by chance."""
    return ALSO_TRUE[skill] / len(all_says(skill, split))


def atoms(skill: str, says: Says, shown: Parsed) -> dict[str, bool]:
    """What a caption says, one by one, and whether a picture shows it.

    Args:
      skill: one of `words.SKILLS`.
      says: what the caption says.
      shown: the parsed picture.
    """
    wanted, things = KINDS[skill](says), shown.scene.things
    found = {"a scene": not shown.faults, "nothing else": len(things) == len(wanted)}
    for shape in {shape for shape, _ in wanted}:
        needed = sum(shape == other for other, _ in wanted)
        found[shape] = sum(thing.shape == shape for thing in things) == needed
    for shape, colour in wanted:
        if colour:
            found[f"{colour} {shape}"] = any((t.shape, t.colour) == (shape, colour) for t in things)
    if skill == "position":
        first, relation, second = says
        found[" ".join(says)] = any(
            relation in relations(box_of(one), box_of(other))
            for one in things if one.shape == first for other in things if other.shape == second
        )  # fmt: skip
    return found


def shows(skill: str, says: Says, picture: np.ndarray) -> bool:
    """Whether a picture shows all that a caption says, and nothing else."""
    return all(atoms(skill, says, parse(picture)).values())


def same(wanted: Scene, picture: np.ndarray) -> bool:
    """Whether a picture shows this very scene."""
    shown = parse(picture)
    return not shown.faults and shown.scene == wanted


def agree(one: tuple[str, Says], other: tuple[str, Says]) -> bool:
    """Whether two captions (skill, what it says) can be true of one picture, of which each names all that there is."""
    left, right = (sorted(KINDS[skill](says)) for skill, says in (one, other))
    if [shape for shape, _ in left] != [shape for shape, _ in right]:
        return False
    if any(a and b and a != b for (_, a), (_, b) in zip(left, right, strict=True)):
        return False
    (skill, first), (other_skill, second) = one, other
    if not skill == other_skill == "position":
        return True
    relation = second[1] if second[0] == first[0] else OPPOSITE[second[1]]
    return relation != OPPOSITE[first[1]]
