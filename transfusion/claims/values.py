"""What the runs of a claim have measured: numbers of their evaluations, values by prompt, learning curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.claims.paired import reached
from transfusion.errors import UsageError
from transfusion.evaluation.results import is_score, read_evaluation
from transfusion.evaluation.scenes.measure import results_of
from transfusion.evaluation.scenes.normalised import Results
from transfusion.running.metrics import read_metrics
from transfusion.sweep.members import Member
from transfusion.sweep.page import curve


def value_of(member: Member, path: str) -> float:
    """The number at a dotted path in the evaluation of a member: a score's value, or a plain number.

    Raises:
      UsageError: if there is none, with the reason where the evaluation tells one.
    """
    found: Any = read_evaluation(member.workdir / "evaluation.json")[0] or {}
    absent, found = found.get("absent") or {}, _at(found, path)
    found = found.get("value") if isinstance(found, Mapping) else found
    if type(found) not in (int, float) or not math.isfinite(found):
        why = absent.get(path.split(".")[0])
        raise UsageError(f"{member.name} has no {path} in its evaluation.json" + (f": {why}" if why else ""))
    return float(found)


def width_of(member: Member, path: str) -> float:
    """Half of the interval of a score in the evaluation of a member; 0 for a plain number."""
    found = _at(read_evaluation(member.workdir / "evaluation.json")[0] or {}, path)
    return (found["high"] - found["low"]) / 2 if is_score(found) else 0.0


def _at(tree: Any, path: str) -> Any:
    """What is at a dotted path; None if nothing is."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def by_prompt(members: Sequence[Member], measure: str, each: Mapping[str, str]) -> np.ndarray | None:
    """Values by prompt, float [runs, prompts], whose mean is the measure; None if it has none.

    They are a field of the lines of a file (`each`), or of an exact judge what `JUDGED` says.

    Raises:
      UsageError: if a run lacks them.
    """
    if each:
        rows = [_lines(member, each["file"], each["field"]) for member in members]
    elif measure in JUDGED:
        rows = [_judged(member, measure) for member in members]
    else:
        return None
    if len({len(row) for row in rows}) != 1:
        raise UsageError(f"{members[0].name}: the runs have values of different prompts")
    return np.array(rows)


# Measure -> what was right and the chance of it, of results on scenes. A score is their mean beyond chance.
JUDGED: dict[str, Callable[[Results], tuple[np.ndarray | None, np.ndarray]]] = {
    "scenes.generation": lambda found: (found.drawn, found.drawn_chance),
    "scenes.understanding": lambda found: (found.read, found.read_chance),
}


def _judged(member: Member, measure: str) -> list[float]:
    """How much each prompt of the split 'test' is right beyond chance."""
    found = read_evaluation(member.workdir / "evaluation.json")[0] or {}
    try:
        right, chance = JUDGED[measure](results_of(found["scenes"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{member.name} has no {measure} by prompt in its evaluation.json") from error
    if right is None:
        raise UsageError(f"{member.name} has no {measure}: it does not do that")
    return ((right[0] - chance[:, None]) / (1 - chance[:, None])).ravel().tolist()


def _lines(member: Member, file: str, field: str) -> list[float]:
    """A field of each line of a file in a member's workdir."""
    path = member.workdir / file
    if not path.resolve().is_relative_to(member.workdir.resolve()):
        raise UsageError(f"{file} is not in the workdir of a run")
    rows, _ = storage.read_json_lines(path, lambda row: isinstance(row, dict) and field in row)
    if not rows:
        raise UsageError(f"{member.name} has no {field} in {file}")
    return [float(row[field]) for row in rows]


def share(column: str, one: Member, two: Member) -> float:
    """After which share of all FLOPs of run `two` run `one` has its last value; infinite if never."""
    x, y = _curve(one, column)
    end, last = _curve(two, column)
    return reached(x, y, last[-1]) / end[-1]


def _curve(member: Member, column: str) -> tuple[list[float], list[float]]:
    x, y = curve(read_metrics(member.workdir / "metrics.jsonl"), column)
    if not x:
        raise UsageError(f"{member.name} has no {column} in its metrics.jsonl")
    return x, y
