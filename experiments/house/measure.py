"""Measures the library as a house and prints a table; with `--before COMMIT ...` beside the numbers of these commits.

python experiments/house/measure.py --before 1330db4 aef441a            # the table
python experiments/house/measure.py --before 1330db4 aef441a --write    # the same, into README.md beside this file
python experiments/house/measure.py --conditions                        # every question of kind, with its place

All numbers come from the sources (`tests/house.py`, `tests/kinds.py`); nothing of the library is imported. A commit is
unpacked into a temporary folder. Needs git and the history.
"""

import argparse
import ast
import atexit
import collections
import datetime
import io
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = pathlib.Path(__file__).with_name("README.md")
MARK = "<!-- what follows is written by measure.py -->\n"
sys.path.insert(0, str(ROOT / "tests"))

from house import House, circles, floors, order, upward  # noqa: E402 - found by the line above

SAMPLER, TRAINING = "transfusion.sampling.decoder", "transfusion.train"
# Modules that lay on the top level once, and the wing that they belong to.
SEQUENCE = ("sequence", "rows", "batch", "masks", "fakes", "spelling", "layouts")
WINGS = ("sequence", "model", "objectives", "sampling")
# A row of each table that stands for all that could be added, by its key and by the module that it lives in.
ADDED = {
    "an objective ('masked')": ("masked", "objectives.masked"),
    "a solver ('heun')": ("heun", "sampling.solvers"),
    "a source of data ('webdataset')": ("webdataset", "data.webdataset"),
    "an attention kernel ('blockwise')": ("blockwise", "model.blockwise"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", nargs="*", default=[], help="commits to measure too")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--conditions", action="store_true", help="list the questions of kind instead")
    options = parser.parse_args()
    house = House(ROOT / "transfusion")
    if options.conditions:
        for found in house.conditions:
            print(f"{found.module}:{found.line} {found.function} [{'raises' if found.raises else 'acts'}] {found.text}")
        return
    columns = {commit: measured(*unpacked(commit)) for commit in options.before}
    columns["now"] = measured(house, added(*options.before[-1:]))
    table = rows(columns)
    print(table)
    if options.write:
        said = README.read_text().partition(MARK)[0]
        README.write_text(f"{said}{MARK}\nMeasured on {datetime.date.today()}.\n\n{table}\n")


def measured(house: House, systems: dict[str, int]) -> dict[str, str]:
    """The numbers of one tree by what they say; `systems` says what its config files changed of the library."""
    line = order(house.arrows)
    up = upward(house.arrows, line)
    fields, properties = house.kinds.members["Stream"]
    longest, lengths = house.functions[0], [function.lines for function in house.functions]
    result = {
        "files on the top level": f"{len(house.files)} (+ {len(house.folders)} folders)",
        "rooms, floors": f"{len(house.arrows)}, {floors(house.arrows)}",
        "arrows between rooms": f"{sum(map(len, house.arrows.values()))}",
        "arrows that run back up": f"{len(up)}" + "".join(f"; {name} to {other}" for name, other in up),
        "imports that run back up": f"{sum(len(crossing(house, *arrow)) for arrow in up)}",
        "circles of modules": f"{len(circles(house.imports))}",
        "rooms in circles": f"{sum(map(len, circles(house.arrows)))}",
    }
    for name, module in (("the sampler", SAMPLER), ("the training program", TRAINING)):
        loaded = house.closure(module)
        result[f"loaded with {name}: modules, lines"] = f"{len(loaded)}, {house.lines(loaded):,}"
    result |= asked(house)
    result |= {
        "fields and properties of `Stream`": f"{len(fields)}, {len(properties)}",
        "modules, lines": f"{len(house.modules)}, {house.lines(house.modules):,}",
        "modules over 300 lines; the longest": f"{sum(m.lines > 300 for m in house.modules.values())}; "
        f"{max(m.lines for m in house.modules.values())}",
        "longest function": f"{longest.lines} lines, `{longest.name}` in {longest.module.partition('.')[2]}",
        "functions over 60 lines": f"{sum(n > 60 for n in lengths)} of {len(lengths)}",
        "95 % of functions have at most": f"{sorted(lengths)[int(0.95 * len(lengths))]} lines",
    }
    for what, (key, module) in ADDED.items():
        touched = sorted(named(house, key, module))
        result[f"files that name {what}"] = f"{len(touched)}: {', '.join(touched)}"
    counts = sorted(systems.values())
    result["files of the library that changed with a config"] = (
        f"{counts[0]} to {counts[-1]}, median {statistics.median(counts):g}, of {len(counts)} configs"
        if len(counts) > 3
        else ", ".join(f"{count} ({name})" for name, count in systems.items())
    )
    return result


def crossing(house: House, room: str, other: str) -> list[tuple[str, str]]:
    """The imports (from, to) that make the arrow between two rooms."""
    return [
        (name, to)
        for name, imported in house.imports.items()
        for to in imported
        if house.room(name) == room and house.room(to) == other
    ]


def asked(house: House) -> dict[str, str]:
    """The questions of kind, in all and by wing."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for condition in house.conditions:
        room = house.room(condition.module)
        wing = "sequence" if room in SEQUENCE else room if room in WINGS else "the rest"
        for name in (f"questions of kind in {wing}", "questions of kind"):
            counts[name][condition.raises] += 1
    wings = (f"questions of kind in {wing}" for wing in (*WINGS, "the rest"))
    acts, raises = counts["questions of kind"]
    whole = {"questions of kind that code acts upon, and that only raise": f"{acts}, {raises}"}
    tables = [sum(found.raises is raises for found in house.kinds.in_tables) for raises in (False, True)]
    by_wing = {name: "{}, {}".format(*counts[name]) for name in wings}
    return whole | by_wing | {"questions of kind inside of the tables": "{}, {}".format(*tables)}


def named(house: House, key: str, module: str) -> Iterator[str]:
    """The files that would change with a row of a table: those whose code has its key as a string, and those that
    import its module by name or are it. Words of docstrings do not count."""
    for name, found in house.modules.items():
        short = name.partition(".")[2]
        spoken = {id(node.value) for node in ast.walk(found.tree) if isinstance(node, ast.Expr)}
        strings = (n for n in ast.walk(found.tree) if isinstance(n, ast.Constant) and id(n) not in spoken)
        own = f"transfusion.{module}" in house.imports[name] and module.endswith(key)
        if short == module or own or any(node.value == key for node in strings):
            yield short or "__init__"


def added(*since: str) -> dict[str, int]:
    """Per config file that the commit `since` lacks, how many files of the library changed in the commit that
    added it; of no commit, per config file that there is."""
    old = git("ls-tree", "--name-only", since[0], "configs/").split("\n") if since else ()
    return changed(
        f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py") if f"configs/{path.name}" not in old
    )


def changed(configs: Iterable[str]) -> dict[str, int]:
    result = {}
    for path in sorted(configs):
        commits = git("log", "--diff-filter=A", "--format=%H", "HEAD", "--", path).split()
        if commits:  # else it is new
            files = git("show", "--format=", "--name-only", commits[-1]).split()
            result[pathlib.Path(path).stem] = sum(file.startswith("transfusion/") for file in files)
    return result


def unpacked(commit: str) -> tuple[House, dict[str, int]]:
    """The library as it was, and for each config how many files of the library changed with it."""
    folder = tempfile.mkdtemp(prefix="house-")
    atexit.register(shutil.rmtree, folder)
    packed = subprocess.run(["git", "archive", commit, "transfusion"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")
    configs = git("ls-tree", "--name-only", commit, "configs/").split()
    return House(pathlib.Path(folder) / "transfusion"), changed(path for path in configs if path.endswith(".py"))


def rows(columns: dict[str, dict[str, str]]) -> str:
    """The columns as a table in Markdown."""
    lines = [f"| what | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {what} | {' | '.join(column[what] for column in columns.values())} |" for what in columns["now"]]
    return "\n".join(lines)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True, text=True).stdout


if __name__ == "__main__":
    main()
