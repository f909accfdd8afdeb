"""What of a caption a picture shows, exactly: atoms as in GenEval 2 (arXiv 2512.16853), and the whole.

The skills, and the rules of counting, colours and relations, are those of GenEval (arXiv 2310.11513). It asks for no
more than the caption; here nothing else may be in the picture, because a caption of a skill names all that there is.
"""

import numpy as np

from transfusion.data.scenes.draws import KINDS
from transfusion.data.scenes.graph import Scene, box_of, relations
from transfusion.data.scenes.parse import Parsed, parse
from transfusion.data.scenes.words import Says


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
