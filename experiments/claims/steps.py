"""Writes into the claims how many steps the budget of the table of systems on scenes pays.

  python experiments/claims/steps.py

Run it when experiments/scenes_table/counts.json has changed. Each line `sizes.SIZE = {... steps = N}` below a system's
`config = "configs/scenes_systems.py:NAME"` gets the steps of NAME; '# x 1.5' behind it multiplies them. Lines that say
'# match' are left as they are: `python -m transfusion.claims match` finds those.
"""

import json
import pathlib
import re
import runpy

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE.parent / "scenes_table"
COUNTS = json.loads((TABLE / "counts.json").read_text())
SIZES = runpy.run_path(str(TABLE / "sweep.py"))["SIZES"]
CONFIG = re.compile(r'^config = "configs/scenes_systems\.py:(\w+)"')
STEPS = re.compile(r"^(sizes\.(\w+) = \{.*\bsteps = )\d+(.*)$")


def rewritten(text: str) -> str:
    """A claim's file with the steps of today's counts."""
    lines, name = [], None
    for line in text.splitlines():
        if line.startswith("["):
            name = None
        if found := CONFIG.match(line):
            name = found[1]
        found = STEPS.match(line)
        if found and name and "# match" not in line:
            before, size, after = found.groups()
            factor = re.search(r"# x ([\d.]+)", after)
            steps = SIZES[size][0] / COUNTS[size][name] * (float(factor[1]) if factor else 1.0)
            line = f"{before}{round(steps)}{after}"
        lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in sorted(HERE.glob("*/claim.toml")):
        before = path.read_text()
        if (after := rewritten(before)) != before:
            path.write_text(after)
            print(path.parent.name)
