"""Makes medians, ranges and ratios of the workers' lines, with pure functions of lists and dicts.

A measurement is {program, size, dtype, work, variant, round, wall: [seconds], cpu: [seconds]}. A round's value is the
median of its calls; what is reported is the median of the rounds and their range. Programs alternate, so a ratio is
taken within each round, where both met the same state of the machine, and then reported in the same way.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Measurement = dict[str, Any]
PROGRAMS = ("peer", "control", "ours")
NEAR = 1.15  # settings this close to the best one in the first round are measured again in the others


def parse(output: str, round_: int) -> tuple[dict[str, Any], list[Measurement]]:
    """A worker's standard output -> (its line without the timings, its measurements).

    Raises:
      ValueError: if there is no JSON object on its last line.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines or not lines[-1].startswith("{"):
        raise ValueError(f"the worker printed no result: {output[-200:]!r}")
    line = json.loads(lines[-1])
    same = {key: line[key] for key in ("program", "size", "dtype")} | {"round": round_}
    return {k: v for k, v in line.items() if k != "timings"}, [same | timing for timing in line["timings"]]


def value(measurement: Measurement) -> float:
    """Wall milliseconds of one round."""
    return 1000 * statistics.median(measurement["wall"])


def settings(measurements: Iterable[Measurement], program: str, size: str, work: str) -> dict[str, dict[int, float]]:
    """'dtype/variant' -> {round: milliseconds} of one cell of the table."""
    result: dict[str, dict[int, float]] = {}
    for m in measurements:
        if (m["program"], m["size"], m["work"]) == (program, size, work):
            result.setdefault(f"{m['dtype']}/{m['variant']}", {})[m["round"]] = value(m)
    return result


def best(by_setting: dict[str, dict[int, float]], dtype: str = "") -> str | None:
    """The setting of the least median among those measured in the most rounds: one lucky round does not win."""
    allowed = {name: rounds for name, rounds in by_setting.items() if name.startswith(dtype)}
    if not allowed:
        return None
    most = max(map(len, allowed.values()))
    complete = {name: rounds for name, rounds in allowed.items() if len(rounds) == most}
    return min(complete, key=lambda name: statistics.median(complete[name].values()))


def near_best(by_setting: dict[str, dict[int, float]]) -> list[str]:
    """The settings worth another round: the fastest, those within NEAR of it, and the fastest in float32."""
    medians = {name: statistics.median(rounds.values()) for name, rounds in by_setting.items()}
    if not medians:
        return []
    limit = NEAR * min(medians.values())
    single = best(by_setting, "float32/")
    return sorted(name for name, median in medians.items() if median <= limit or name == single)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(other: dict[int, float], ours: dict[int, float]) -> dict[str, float] | None:
    """How many times faster ours is: the other's time over ours, per round; None without a common round."""
    common = sorted(other.keys() & ours.keys())
    return {**spread([other[r] / ours[r] for r in common]), "rounds": len(common)} if common else None


def summary(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """{'milliseconds': size -> work -> program -> best setting, 'ratios': size -> work -> name -> ratio}.

    Ratios compare best setting with best setting ('peer', 'control') and float32 with float32 ('peer_float32', ...).
    """
    times: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for size, work in sorted({(m["size"], m["work"]) for m in measurements}):
        by_program = {program: settings(measurements, program, size, work) for program in PROGRAMS}
        for suffix, dtype in (("", ""), ("_float32", "float32/")):
            for program, by_setting in by_program.items():
                name = best(by_setting, dtype)
                if name is None:
                    continue
                cell = {"setting": name, "rounds": len(by_setting[name]), **spread([*by_setting[name].values()])}
                times.setdefault(size, {}).setdefault(work, {})[program + suffix] = cell
            cells = times[size][work]
            for program in ("peer", "control"):
                if program + suffix in cells and "ours" + suffix in cells:
                    other = by_program[program][cells[program + suffix]["setting"]]
                    found = ratio(other, by_program["ours"][cells["ours" + suffix]["setting"]])
                    ratios.setdefault(size, {}).setdefault(work, {})[program + suffix] = found
    return {"milliseconds": times, "ratios": ratios}


def table(result: dict[str, Any]) -> str:
    """Markdown: a line per size and work; milliseconds (range) with their setting, and the ratios (range)."""
    lines = [
        "| size | work | peer | control | ours | peer / ours | control / ours | peer / ours f32 | control / ours f32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, works in result["milliseconds"].items():
        for work, cells in works.items():
            columns = [_time(cells.get(program)) for program in PROGRAMS]
            ratios = result["ratios"].get(size, {}).get(work, {})
            columns += [_ratio(ratios.get(name)) for name in ("peer", "control", "peer_float32", "control_float32")]
            lines.append(f"| {size} | {work} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _time(cell: dict[str, Any] | None) -> str:
    return f"{cell['median']:.0f} ({cell['low']:.0f}-{cell['high']:.0f}) {cell['setting']}" if cell else "-"


def _ratio(found: dict[str, Any] | None) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})" if found else "-"
