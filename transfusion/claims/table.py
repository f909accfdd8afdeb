"""The claims as lines and as the table of a README."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion import storage
from transfusion.claims.claim import Claim
from transfusion.errors import UsageError
from transfusion.running.metrics import human

BEGIN, END = "<!-- claims: written by python -m transfusion.claims -->", "<!-- end of claims -->"
Found = Mapping[str, Mapping[str, Any]]
"""The verdicts of a claim by size."""


def interval(test: Mapping[str, Any]) -> str:
    """The advantage of a test with its interval and threshold, in words."""
    if "advantage" not in test:
        return test["problem"]
    found = test["advantage"]
    said = f"{_number(test, found['value'])} ({_number(test, found['low'])} to {_number(test, found['high'])}; "
    said += f"{SIDES[test['rule']]} {_number(test, test['threshold'], sign=False)})"
    return said + (f"; {test['problem']}" if test.get("problem") else "")


SIDES = {"better": "must be above", "same": "must be within", "less": "must be below"}


def _number(test: Mapping[str, Any], value: float | None, sign: bool = True) -> str:
    share = test["relative"] or test["rule"] == "less"
    if value is None:
        return "not reached" if test["rule"] == "less" else "unknown"
    plus = "+" if sign and test["rule"] != "less" else ""
    return f"{value:{plus}.1%}" if share else f"{value:{plus}.4g}"


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What else the verdict says: what could have been seen, and what the loser would need."""
    said = []
    if found.get("changed_after"):
        said.append(f"the file was changed after its runs began ({found['changed_after'][:10]})")
    for test in found["tests"]:
        if test["verdict"] == "undecided" and "advantage" in test:
            seen = test["advantage"]["seen"]
            least = (
                "nothing, with one seed or with values that are all the same"
                if seen is None
                else _number(test, seen, sign=False)
            )
            said.append(f"could have seen {least}")
        catch = test.get("catch_up")
        if catch and "loser" in catch:
            needs = catch["needs"]
            more = "not reached" if needs is None else f"after {needs:.2f} times the winner's FLOPs"
            said.append(f"{catch['loser']} catches up by {catch['column']}: {more}")
    return said


def scale(found: Mapping[str, Any]) -> str:
    """The size of the runs: parameters and FLOPs of the systems, from least to most."""
    systems = found["systems"].values()
    sizes = sorted(system["parameters"] for system in systems)
    flops = sorted(system["training_flops"] for system in systems if system["training_flops"])
    parts = [_range(sizes) + " parameters"] + ([_range(flops) + " FLOPs"] if flops else [])
    return ", ".join(parts)


def _range(values: Sequence[float]) -> str:
    low, high = human(values[0]), human(values[-1])
    return low if low == high else f"{low} to {high}"


def lines(claims: Sequence[tuple[Claim, Found]]) -> str:
    """A line for each claim and size, and what is missing."""
    said = []
    for claim, found in claims:
        for size in claim.sizes:
            one = found.get(size) or {"verdict": "not run", "tests": [], "missing": {}}
            head = f"{claim.name} ({size}): {one['verdict']}" + (f", {scale(one)}" if one["tests"] else "")
            rest = [f"{test['title']}: {interval(test)}" for test in one["tests"]] + remarks(one)
            if one["missing"]:
                rest.append("finished: " + ", ".join(f"{name} {many}" for name, many in one["missing"].items()))
            said += [head, *(f"    {part}" for part in rest)]
    return "\n".join(said)


def markdown(claims: Sequence[tuple[Claim, Found]]) -> str:
    """The table of all claims, a row for each claim and size that has a verdict, and one if it has none."""
    rows = ["| claim | source | size | verdict | advantage (95 % interval; threshold) | also |",
            "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for claim, found in claims:
        sizes = [size for size in claim.sizes if (found.get(size) or {}).get("verdict", "not run") != "not run"]
        for size in sizes or [next(iter(claim.sizes))]:
            one = found.get(size) or {"verdict": "not run", "tests": [], "systems": {}}
            tests = "<br>".join(f"{test['title']}: {interval(test)}" for test in one["tests"])
            also = "<br>".join(([f"{scale(one)}"] if tests else []) + remarks(one))
            cells = (f"[{claim.name}]({claim.name}/claim.toml): {claim.hypothesis}", claim.source, size,
                     f"**{one['verdict']}**", tests, also)  # fmt: skip
            rows.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def write_readme(path: pathlib.Path, claims: Sequence[tuple[Claim, Found]]) -> None:
    """Puts the table between the markers of a README.

    Raises:
      UsageError: if the file has no markers.
    """
    text = storage.read_bytes(path).decode()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{path} has not the lines {BEGIN!r} and {END!r}, between which the table goes")
    whole = f"{before}{BEGIN}\n\n{markdown(claims)}\n\n{END}{after}"
    if whole != text:
        storage.write_whole(path, whole)
