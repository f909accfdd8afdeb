"""Tells the FLOPs and hours of members before they are run, each with where the number comes from."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion.config import Experiment, to_json
from transfusion.errors import UsageError
from transfusion.running.metrics import human, read_metrics, training_flops
from transfusion.sweep.members import Member
from transfusion.sweep.process import is_finished
from transfusion.tasks import flops_of_data, make_task


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a member will cost.

    Attributes:
      flops: model FLOPs of its training.
      counted: how they are known: 'counted' by the run, from the first rows of its 'data', or from full 'rows'.
      hours: of its training; None if nothing says how fast it is.
      timed: how they are known.
      finished: whether nothing is left to do.
    """

    member: Member
    flops: float
    counted: str
    hours: float | None
    timed: str
    finished: bool


def flops_of(experiment: Experiment) -> tuple[float, str]:
    """The model FLOPs of a training, and how they are known: from its 'data', or from full 'rows' where the data or a
    codec is not there yet."""
    try:
        each = flops_of_data(make_task(experiment), experiment)
        return each * experiment.batch_size * experiment.steps, "data"
    except UsageError:
        return flops_of_rows(experiment), "rows"


def flops_of_rows(experiment: Experiment, rows: int = 16) -> float:
    """The model FLOPs of a training on full rows of random content, which need no data."""
    task = make_task(experiment)
    return float(task.flops(task.fake_batch(rows)).mean()) * experiment.batch_size * experiment.steps


def forecast(members: Sequence[Member], rate: float | None = None) -> list[Forecast]:
    """What members will cost.

    Hours come from the member's own measured steps; else from its FLOPs at the rate that the other members' runs have
    reached; else at `rate`, the FLOP/s of one process that the user has stated. Otherwise they are not known.
    """
    costs = [(member, *_counted(member)) for member in members]
    speeds = [_speed(member) for member in members]
    reached = [flops / member.experiment.steps * speed
               for (member, flops, _), speed in zip(costs, speeds, strict=True) if speed]  # fmt: skip
    result = []
    for (member, flops, counted), speed in zip(costs, speeds, strict=True):
        if speed:
            hours, timed = member.experiment.steps / speed / 3600, "from their own measured steps"
        elif reached or rate:
            at = statistics.median(reached) if reached else rate
            said = f"at {human(at)} FLOP/s, " + ("as measured of the others" if reached else "as stated")
            hours, timed = flops / at / 3600, said
        else:
            hours, timed = None, "not known: no run has been measured, and no --rate is stated"
        result.append(Forecast(member, flops, counted, hours, timed, is_finished(member)))
    return result


def _counted(member: Member) -> tuple[float, str]:
    logged = read_metrics(member.workdir / "metrics.jsonl")
    if logged and (found := training_flops(logged)) and logged[-1]["step"]:
        return found / logged[-1]["step"] * member.experiment.steps, "counted"
    return flops_of(member.experiment)


def _speed(member: Member) -> float | None:
    """Steps per second of the member's run, as the median over what it has logged."""
    rows = read_metrics(member.workdir / "metrics.jsonl")
    found = [row["steps_per_second"] for row in rows if row.get("steps_per_second")]
    return statistics.median(found) if found else None


def varied(experiments: Mapping[str, Experiment]) -> dict[str, dict[str, Any]]:
    """{name: {field: value}} of the fields in which some of the experiments differ."""
    flat = {name: dict(_leaves("", json.loads(to_json(one)))) for name, one in experiments.items()}
    fields = dict.fromkeys(field for leaves in flat.values() for field in leaves)
    missing = object()
    differ = [f for f in fields if len({repr(leaves.get(f, missing)) for leaves in flat.values()}) > 1]
    return {name: {f: leaves[f] for f in differ if f in leaves} for name, leaves in flat.items()}


def _leaves(field: str, value: Any):
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{field}.{name}" if field else name, inner)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for i, inner in enumerate(value):
            yield from _leaves(f"{field}[{i}]", inner)
    else:
        yield field, value


def shown(fields: Mapping[str, Any], most: int = 4) -> str:
    """Some fields and their values in a line."""
    parts = [f"{name}={value}" for name, value in fields.items()]
    rest = [f"and {len(parts) - most} more"] if len(parts) > most else []
    return ", ".join([*parts[:most], *rest])


def forecast_table(forecasts: Sequence[Forecast], parallel: int = 1, differing: bool = True) -> str:
    """The forecasts as lines of text, with their sum and what remains, and with the fields that differ if wanted."""
    fields = varied({one.member.name: one.member.experiment for one in forecasts}) if differing else {}
    lines = ["| index | name | parameters | steps | training FLOPs | hours | needs | fields |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for index, one in enumerate(forecasts):
        mark = "~" if one.counted == "rows" else ""
        hours = "done" if one.finished else "not known" if one.hours is None else f"{one.hours:.2f}"
        member = one.member
        own = shown(fields.get(member.name, {}))
        cells = (str(index), member.name, human(member.parameters), str(member.experiment.steps),
                 mark + human(one.flops), hours, ", ".join(member.needs), own)  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    left = [one for one in forecasts if not one.finished]
    total, known = sum(one.flops for one in left), [one.hours for one in left if one.hours is not None]
    said = f"{len(left)} of {len(forecasts)} members are left: {human(total)} FLOPs"
    if left and len(known) == len(left):
        said += f", {sum(known):.2f} hours of training one after the other"
        said += f", {max(sum(known) / parallel, *known):.2f} with {parallel} at a time" if parallel > 1 else ""
    lines += ["", said + "; evaluations come on top."]
    lines += [f"Hours of {count} members: {way}." for way, count in _ways(left)]
    if any(one.counted == "rows" for one in forecasts):
        lines.append("~ counts full rows, because the data or a codec is not there yet.")
    return "\n".join(lines)


def _ways(forecasts: Sequence[Forecast]) -> list[tuple[str, int]]:
    ways = [one.timed for one in forecasts]
    return [(way, ways.count(way)) for way in dict.fromkeys(ways)]
