"""Lines of JSON, one per measurement, and the ratios that are made of them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any]]  # name -> what was measured


def write(path: pathlib.Path, name: str, **values: Any) -> None:
    """Appends a line, prints it, and waits until it is on disk: what was measured stays, whatever comes next."""
    line = json.dumps({"name": name} | values)
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What a file holds; of two lines with one name the later one. A line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[values.pop("name")] = values
    return found


def ratio(results: Results, above: str, below: str, field: str = "seconds") -> float | None:
    """One measurement divided by another; None if one of them is missing."""
    values = [results.get(name, {}).get(field) for name in (above, below)]
    return values[0] / values[1] if all(values) else None


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio of two measurements of one run, and the least that it should be; None: it is only told."""

    what: str
    least: float | None
    of: Callable[[Results], float | None]

    def line(self, results: Results) -> str:
        """The ratio, and whether the target is reached, as a row of a Markdown table."""
        found, least = self.of(results), "-" if self.least is None else f"{self.least:g}"
        if found is None:
            return f"| {self.what} | not measured | {least} | - |"
        verdict = "-" if self.least is None else "reached" if found >= self.least else "MISSED"
        return f"| {self.what} | {found:.2f} | {least} | {verdict} |"


def table(targets: list[Target], results: Results) -> str:
    """All targets as a Markdown table."""
    lines = ["| ratio | measured | target | |", "|---|---|---|---|"]
    return "\n".join(lines + [target.line(results) for target in targets])
