"""The verdict on a claim from its runs: by each test, with interval, and what the loser would need to catch up."""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion import storage
from transfusion.claims.claim import Claim, Test
from transfusion.claims.equal import TOLERANCE, parameters_of, run_flops, steps_of
from transfusion.claims.ledger import Claimed
from transfusion.claims.paired import Difference, difference, reached, verdict_of
from transfusion.claims.values import by_prompt, share, value_of, width_of
from transfusion.errors import UsageError
from transfusion.evaluation.results import read_evaluation
from transfusion.running import provenance
from transfusion.sweep.members import Member
from transfusion.sweep.process import seconds_of

RESULTS = "results.json"  # beside the claim's file: the verdicts by size


def verdict(claimed: Claimed) -> dict[str, Any]:
    """The verdict on a claim as results.json holds it, from its runs.

    A claim does not hold if one of its tests does not, and holds if all do. Where runs are missing it is 'not run', and
    'missing' says how many of each system.
    """
    missing, tests, systems, word = missing_runs(claimed), [], {}, "not run"
    if not missing:
        systems = {name: _system(members) for name, members in claimed.systems.items()}
        tests = [_test(claimed, test, systems) for test in claimed.claim.tests]
        words = [test["verdict"] for test in tests]
        word = next((w for w in ("does not hold", "undecided") if w in words), "holds")
    return {
        "verdict": word,
        "missing": missing,
        "tests": tests,
        "systems": systems,
        "claim": claimed.claim.digest,
        "date": provenance.now(),
        "command": f"python -m transfusion.claims run {claimed.claim.name} --size {claimed.size}",
        "machines": _machines(claimed),
    }


def missing_runs(claimed: Claimed) -> dict[str, str]:
    """{system or part: 'how many of how many are finished'} of those that lack some."""
    missing, found = {member.name for member in claimed.missing}, {}
    groups = {member.name.partition(".")[2]: (member,) for member in claimed.parts} | dict(claimed.systems)
    for name, members in groups.items():
        left = sum(member.name in missing for member in members)
        if left:
            found[name] = f"{len(members) - left} of {len(members)}"
    return found


def _system(members: Sequence[Member]) -> dict[str, Any]:
    """The sizes of a system's runs; None for what no finished run has counted."""
    flops = [found for member in members if (found := run_flops(member)) is not None]
    return {
        "runs": [member.digest for member in members],
        "parameters": parameters_of(members[0].experiment),
        "steps": members[0].experiment.steps,
        "training_flops": statistics.mean(flops) if flops else None,
        "seconds": round(sum(map(seconds_of, members)), 1),
    }


def _machines(claimed: Claimed) -> list[str]:
    """Where the runs were evaluated, and by which source code."""
    found = {}
    for member in claimed.members:
        evaluation = read_evaluation(member.workdir / "evaluation.json")[0] or {}
        machine, code = evaluation.get("machine") or {}, evaluation.get("code") or {}
        if machine:
            commit = (code.get("commit") or "no commit known")[:12] + (", dirty" if code.get("dirty") else "")
            found[f"{machine.get('devices')}, {machine.get('cpu_cores')} cores, {commit}"] = None
    return list(found)


# --- one test ---------------------------------------------------------------------------------------------------------


def _test(claimed: Claimed, test: Test, systems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first, second = (claimed.systems[name] for name in (test.first, test.second))
    problem = _unequal(claimed.claim, test, first[0], second[0], systems)
    try:
        found, values = (_reaching if test.reaches else _measured)(test, first, second)
    except UsageError as error:
        return _fields(test) | {"verdict": "undecided", "problem": str(error)}
    rule = "less" if test.reaches else test.rule
    word = "undecided" if problem else verdict_of(found, rule, test.threshold)
    return _fields(test) | {
        "verdict": word,
        "problem": problem,
        "values": values,
        "advantage": {name: _finite(value) for name, value in dataclasses.asdict(found).items()},
        "catch_up": _caught(claimed, test, found.value, systems),
    }


def _caught(
    claimed: Claimed, test: Test, advantage: float, systems: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What the loser needs to catch up, by the test's ladder or its curve; None if it has neither."""
    if test.ladder and advantage > 0:
        return _climbed(claimed, test, systems)
    first, second = (claimed.systems[name] for name in (test.first, test.second))
    return _catch_up(test.curve, first, second, advantage) if test.curve else None


def _climbed(claimed: Claimed, test: Test, systems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The FLOPs at which the loser's mean over seeds reaches the winner's, on the line between two of its trainings, as
    a multiple of the winner's FLOPs."""
    sign = 1.0 if test.better == "lower" else -1.0

    def mean(name: str) -> float:
        return sign * statistics.mean(value_of(member, test.measure) for member in claimed.systems[name])

    flops = [systems[name]["training_flops"] for name in (test.first, *test.ladder)]
    if None in flops:
        return {"column": test.measure, "problem": "a run has not counted its FLOPs"}
    needs = reached(flops[1:], [mean(name) for name in test.ladder], mean(test.first)) / flops[0]
    return {"column": test.measure, "loser": test.second, "needs": _finite(needs), "winner_after": None}


def _fields(test: Test) -> dict[str, Any]:
    return {"title": test.title, "threshold": test.threshold, "relative": test.relative,
            "rule": "less" if test.reaches else test.rule}  # fmt: skip


def _unequal(
    claim: Claim, test: Test, first: Member, second: Member, systems: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Why the systems cannot be compared: they do not have equal what the claim says; None if they do."""
    kind = claim.equal_of(test)
    if kind == "nothing":
        return None
    if kind == "steps":
        counts = [steps_of(first.experiment), steps_of(second.experiment)]
    else:
        field = {"flops": "training_flops", "parameters": "parameters"}[kind]
        counts = [systems[name][field] for name in (test.first, test.second)]
    if None in counts:
        return f"the runs have not counted their {kind}"
    apart = counts[0] / counts[1] - 1
    return f"{test.first} has {apart:+.1%} {kind}, which is not equal" if abs(apart) > TOLERANCE else None


def _measured(
    test: Test, first: Sequence[Member], second: Sequence[Member]
) -> tuple[Difference, dict[str, list[float]]]:
    """The advantage of the first system by a field of evaluation.json, and the values by seed."""
    sign = 1.0 if test.better == "higher" else -1.0
    sides = [(first, test.measure), (second, test.against or test.measure)]
    each = [by_prompt(side, measure, test.each) for side, measure in sides]
    if each[0] is None or each[1] is None:
        prompts, values = None, [[value_of(member, measure) for member in side] for side, measure in sides]
    elif each[0].shape != each[1].shape:
        raise UsageError(f"{test.title}: the systems have values of other prompts")
    else:
        prompts, values = sign * (each[0] - each[1]), [one.mean(1).tolist() for one in each]
    scale = abs(statistics.mean(values[1])) if test.relative else 1.0
    if scale == 0:
        raise UsageError(f"{test.title}: an advantage relative to 0 says nothing")
    pairs = [sign * (one - two) / scale for one, two in zip(*values, strict=True)]
    own = None
    if len({*values[0], *values[1]}) == 1:  # all at a floor or a ceiling: then the evaluations' own intervals tell
        widths = [width_of(member, measure) for side, measure in sides for member in side]
        own = math.sqrt(sum(width**2 for width in widths)) / len(first) / scale or math.inf
    found = difference(pairs, None if prompts is None else prompts / scale, own=own)
    names = (test.measure, test.against) if test.against else (test.first, test.second)
    return found, dict(zip(names, values, strict=True))


def _reaching(
    test: Test, first: Sequence[Member], second: Sequence[Member]
) -> tuple[Difference, dict[str, list[float | None]]]:
    """The share of the second system's FLOPs after which the first has its last value, by seed."""
    shares = [share(test.reaches, one, two) for one, two in zip(first, second, strict=True)]
    return difference(shares), {f"{test.first} of {test.second}": [_finite(share) for share in shares]}


def _catch_up(column: str, first: Sequence[Member], second: Sequence[Member], advantage: float) -> dict[str, Any]:
    """What the loser needs to catch up, by learning curves: its FLOPs as a multiple of the winner's, and the share of
    the loser's FLOPs after which the winner was where the loser ended. None is 'not reached'; medians over seeds."""
    winner, loser = (first, second) if advantage >= 0 else (second, first)
    try:
        needs = [share(column, one, two) for one, two in zip(loser, winner, strict=True)]
        saves = [share(column, one, two) for one, two in zip(winner, loser, strict=True)]
    except UsageError as error:
        return {"column": column, "problem": str(error)}
    return {
        "column": column,
        "loser": loser[0].name.split(".")[1],
        "needs": _finite(statistics.median(needs)),
        "winner_after": _finite(statistics.median(saves)),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- results.json -----------------------------------------------------------------------------------------------------


def recorded(claim: Claim) -> dict[str, dict[str, Any]]:
    """The verdicts in a claim's results.json, by size; those of another version of the claim are left out.

    Raises:
      UsageError: if the file is damaged.
    """
    path = pathlib.Path(claim.folder) / RESULTS
    try:
        found = storage.read_json(path) or {}
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}): remove it; the next run writes it again") from error
    return {size: one for size, one in found.items() if isinstance(one, dict) and one.get("claim") == claim.digest}


def record(claim: Claim, size: str, found: Mapping[str, Any]) -> None:
    """Writes a verdict into the claim's results.json, unless it is the same as there but for dates."""
    known = recorded(claim)
    if _without_dates(known.get(size, {})) != _without_dates(found):
        content = json.dumps(known | {size: dict(found)}, indent=1, allow_nan=False)
        storage.write_whole(pathlib.Path(claim.folder) / RESULTS, content + "\n")


def _without_dates(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("date", "fixed")}
