"""What systems have equal: counted FLOPs, counted parameters, or steps and rows; and the value that makes them so."""

import dataclasses
from collections.abc import Callable, Sequence

from transfusion.claims.ledger import Claimed
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.model.unified import parameter_count
from transfusion.running.metrics import human, read_metrics, training_flops
from transfusion.sweep.forecast import flops_of, flops_of_rows
from transfusion.sweep.members import Member, with_changes
from transfusion.tasks import make_task

TOLERANCE = 0.02


def steps_of(experiment: Experiment) -> float:
    """The packed rows of a whole training."""
    return float(experiment.steps * experiment.batch_size)


def parameters_of(experiment: Experiment) -> float:
    """The number of parameters."""
    return float(parameter_count(make_task(experiment).template.shapes))


COUNTED: dict[str, Callable[[Experiment], float]] = {"parameters": parameters_of, "steps": steps_of}


WORDS = {"flops": "FLOPs", "parameters": "parameters", "steps": "packed rows"}


def run_flops(member: Member) -> float | None:
    """The FLOPs that a finished run has counted on its own rows; None if it has not."""
    logged = read_metrics(member.workdir / "metrics.jsonl")
    return training_flops(logged) if logged and logged[-1]["step"] == member.experiment.steps else None


def check_equal(claimed: Claimed) -> list[str]:
    """What each test's systems have equal, in a line each.

    FLOPs are those that finished runs have counted, or else those of the first rows of the data.

    Raises:
      UsageError: if they differ by more than 2 %, with the numbers.
    """
    lines, known = [], {}
    for test in claimed.claim.tests:
        kind = claimed.claim.equal_of(test)
        if kind == "nothing":
            continue
        pair = [claimed.systems[name][0] for name in (test.first, test.second)]
        key = (kind, test.first, test.second)
        counts = known[key] = (
            known.get(key) or counts_of_runs(kind, pair) or counts_of(kind, [m.experiment for m in pair])
        )
        apart = counts[0] / counts[1] - 1
        line = f"{test.first} and {test.second}: {human(counts[0])} and {human(counts[1])} {WORDS[kind]} ({apart:+.1%})"
        if abs(apart) > TOLERANCE:
            raise UsageError(
                f"claim {claimed.claim.name}, size {claimed.size}: {line} are not equal; "
                f"`python -m transfusion.claims match {claimed.claim.name}` finds a value that makes them so"
            )
        lines.append(line)
    return list(dict.fromkeys(lines))


def counts_of_runs(kind: str, members: Sequence[Member]) -> list[float] | None:
    """The FLOPs that finished runs have counted; None if some are not there, or something else is to be equal."""
    found = [run_flops(member) for member in members] if kind == "flops" else [None]
    return None if None in found else found


def counts_of(kind: str, experiments: Sequence[Experiment]) -> list[float]:
    """What experiments have of a kind. FLOPs are counted in one way for all: from the data, or from full rows if the
    data or the codec of one of them is not there yet."""
    if kind != "flops":
        return [COUNTED[kind](experiment) for experiment in experiments]
    found = [flops_of(experiment) for experiment in experiments]
    if len({how for _, how in found}) > 1:
        return [flops_of_rows(experiment) for experiment in experiments]
    return [flops for flops, _ in found]


@dataclasses.dataclass(frozen=True)
class Match:
    """The value of a field with which a system has as much as another, and how far apart they then are."""

    field: str
    value: int
    count: float
    wanted: float

    @property
    def apart(self) -> float:
        return self.count / self.wanted - 1


def match(wanted: Experiment, other: Experiment, kind: str, field: str, multiple: int = 1) -> Match:
    """The value of an integer field, a multiple of `multiple`, with which `other` is nearest to `wanted`.

    Args:
      kind: 'flops' or 'parameters'.
      field: such as 'steps', 'model.ffn' or 'model.width'; more of it must mean more of what is counted.

    Raises:
      UsageError: if no value comes within 2 %, or the field cannot be changed so.
    """
    target, now = counts_of(kind, [wanted, other])
    if field == "steps" and kind == "flops":
        value = max(1, round(target / (now / other.steps)))
        return _checked(Match(field, value, now / other.steps * value, target), kind)

    def at(value: int) -> float:
        return counts_of(kind, [wanted, with_changes(other, {field: value * multiple})])[1]

    low, high = 1, 2
    while at(high) < target:
        low, high = high, 2 * high
        if high * multiple > 2**20:
            raise UsageError(f"{field}: no value up to {2**20} gives {human(target)} {kind}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    best = min((low, high), key=lambda value: abs(at(value) - target))
    return _checked(Match(field, best * multiple, at(best), target), kind)


def _checked(found: Match, kind: str) -> Match:
    if abs(found.apart) > TOLERANCE:
        raise UsageError(
            f"{found.field} = {found.value} is the nearest, with {human(found.count)} {kind} and not "
            f"{human(found.wanted)} ({found.apart:+.1%}): choose another field, or a smaller --multiple"
        )
    return found


def match_lines(claimed: Claimed, field: str, multiple: int = 1) -> list[str]:
    """For each test, the value of a field of its `first` system with which it is equal to the second."""
    lines = []
    for test in claimed.claim.tests:
        kind = claimed.claim.equal_of(test)
        if kind not in ("flops", "parameters"):
            continue
        first, second = (claimed.systems[name][0].experiment for name in (test.first, test.second))
        found = match(second, first, kind, field, multiple)
        lines.append(
            f'[systems.{test.first}] changes: "{field}" = {found.value}   # {human(found.count)} {kind}; '
            f"{test.second} has {human(found.wanted)} ({found.apart:+.2%})"
        )
    return list(dict.fromkeys(lines))
