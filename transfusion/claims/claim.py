"""A claim as data: one TOML file `NAME/claim.toml`, in which everything is fixed before a run begins.

    source = "Liang et al., Mixture-of-Transformers (arXiv 2411.04996), section 3.2"
    hypothesis = "With the same FLOPs, experts by modality reach a lower image loss than a dense trunk."
    equal = "flops"
    seeds = 3

    [systems.dense]
    config = "configs/digits.py"
    [systems.mot]
    config = "configs/mot.py"

    [[tests]]
    first = "mot"
    second = "dense"
    measure = "velocity_loss.image.mean"
    better = "lower"
    threshold = 0.02
    relative = true

    [sizes.cpu]
    steps = 400
    [sizes.gpu]
    "model.width" = 512

Relative paths of configs are looked for beside the file, above it, and in the current folder.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

from transfusion.errors import UsageError, check, nearest
from transfusion.workdir.digest import LENGTH, without_defaults

FILE = "claim.toml"
EQUAL = ("flops", "parameters", "steps", "nothing")
DIRECTIONS = ("higher", "lower")
RULES = ("better", "same")


@dataclasses.dataclass(frozen=True)
class System:
    """A config with some fields changed.

    Attributes:
      config: its file, with ':form' if it has one.
      changes: {field: value}, of all sizes.
      runs: {field of a path: part or system of the claim}: the runs that it begins with or encodes with; those of a
        system have the same seed.
      sizes: {size: {field: value}}, where sizes differ in more than what all systems share; the value of 'config' is
        another config for that size.
    """

    config: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Test:
    """One comparison: by how much the system `first` is better than `second`, against a threshold.

    Attributes:
      measure: a dotted path into evaluation.json, such as 'velocity_loss.image.mean'; '' if `reaches` is given.
      against: the measure of `second`, if it is another one: two ways of using the same runs.
      better: whether 'higher' or 'lower' values of it are better.
      threshold: 'better' holds if the advantage of `first` is above it. A negative one asks that `first` is not worse
        by more.
      relative: whether advantage and threshold are shares of the mean of `second`, and not in units of the measure.
      rule: 'better', or 'same': that the systems differ by less than the threshold in either direction.
      reaches: instead of a measure a column of metrics.jsonl, such as 'held_out_image_loss', lower is better: the
        share of the FLOPs of `second` after which `first` has the last value of `second`; holds below the threshold.
      curve: a column of metrics.jsonl, which tells how many FLOPs the loser would need to catch up.
      ladder: instead of a curve: `second` and systems that are the same for more steps, from few to many. They tell by
        the measure itself how many FLOPs `second` needs to be as good as `first`.
      equal: what the two have equal, within 2 %; default: that of the claim.
      each: {'file', 'field'} of values by prompt in each workdir, such as 'samples/captions.jsonl' and 'right', whose
        mean is the measure: then prompts are resampled, too.
    """

    first: str
    second: str
    threshold: float
    measure: str = ""
    against: str = ""
    better: str = "higher"
    relative: bool = False
    rule: str = "better"
    reaches: str = ""
    curve: str = ""
    ladder: tuple[str, ...] = ()
    equal: str = ""
    each: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The comparison in a few words."""
        if self.against:
            return f"{self.measure} of {self.first} against {self.against} of {self.second}"
        what = self.measure or f"FLOPs to the same {self.reaches}"
        return f"{self.first} against {self.second}, {what}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the literature, and how it is tested. It holds if all of its tests do.

    Attributes:
      source: who claims it, and where.
      hypothesis: the claim, in one sentence.
      systems, parts: what is compared, and runs that these begin with: codecs, towers, text models. Of a part there is
        one run for all seeds, and its FLOPs are not counted.
      seeds: how many of each system.
      equal: what the systems have equal: 'flops' or 'parameters', counted, 'steps' (and rows), or 'nothing'.
      sizes: {size: {field: value}}, set in all systems and not in parts.
      notes: what the comparison leaves open, such as what is not held equal.
    """

    name: str
    source: str
    hypothesis: str
    systems: Mapping[str, System]
    tests: tuple[Test, ...]
    seeds: int = 3
    equal: str = "flops"
    sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"cpu": {}})
    parts: Mapping[str, System] = dataclasses.field(default_factory=dict)
    notes: str = ""
    folder: pathlib.Path = pathlib.Path()

    @property
    def digest(self) -> str:
        """Changes if anything but the words does."""
        content = without_defaults(self, ("folder", "notes", "source", "hypothesis"))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:LENGTH]

    def config(self, system: System, size: str) -> str:
        """The path of a system's config at a size, with its form."""
        path, colon, form = system.sizes.get(size, {}).get("config", system.config).partition(":")
        for folder in (self.folder, *self.folder.absolute().parents, pathlib.Path()):
            if (folder / path).is_file():
                return os.fspath(folder / path) + colon + form
        raise UsageError(f"{self.name}: there is no config {path}, neither beside the claim nor above it")

    def equal_of(self, test: Test) -> str:
        return test.equal or self.equal


def read_claims(folder: str | os.PathLike, names: tuple[str, ...] = ()) -> list[Claim]:
    """The claims in the folders below `folder`, by name; all of them, or those named.

    Raises:
      UsageError: in one line, if a file is wrong, or there is no claim of a name.
    """
    found = sorted(path.parent.name for path in pathlib.Path(folder).glob(f"*/{FILE}"))
    if not found:
        raise UsageError(f"{folder} holds no claim: a claim is a file NAME/{FILE}")
    for name in names:
        if name not in found:
            raise UsageError(f"there is no claim {name!r} in {folder}{nearest(name, found)}")
    return [read_claim(pathlib.Path(folder) / name / FILE) for name in names or found]


def read_claim(path: str | os.PathLike) -> Claim:
    """The claim in a file; it has the name of its folder.

    Raises:
      UsageError: in one line, if the file is wrong.
    """
    path = pathlib.Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    try:
        claim = _claim(content, path)
        _check(claim)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return claim


def _claim(content: dict[str, Any], path: pathlib.Path) -> Claim:
    tables = {
        "systems": {name: _made(System, f"systems.{name}", of) for name, of in _table(content, "systems").items()},
        "parts": {name: _made(System, f"parts.{name}", of) for name, of in _table(content, "parts").items()},
    }
    tests = content.get("tests", [])
    if not isinstance(tests, list | tuple) or not tests:
        raise UsageError("tests: at least one [[tests]] says what is compared")
    tables["tests"] = tuple(_made(Test, f"tests[{i}]", of) for i, of in enumerate(tests))
    own = {"name": path.parent.name, "folder": path.parent}
    for field in own:
        if field in content:
            raise UsageError(f"unknown field {field!r}: the folder of the file has the claim's name")
    return _made(Claim, "", content | tables | own)


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise UsageError(f"{name} must be a table of names")
    return found


_KINDS = {str: str, int: int, bool: bool, float: (int, float)}


def _made(kind: type, where: str, content: Any) -> Any:
    """A dataclass of the fields in a table; strict about their names and types."""
    before = f"{where}: " if where else ""
    if not isinstance(content, dict):
        raise UsageError(f"{before}must be a table of fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in content:
        if name not in fields:
            raise UsageError(f"{before}unknown field {name!r}{nearest(name, fields)}")
    for name, field in fields.items():
        missing = dataclasses.MISSING
        if name not in content and field.default is missing and field.default_factory is missing:
            raise UsageError(f"{before}the field {name!r} is missing")
        wanted = _KINDS.get(field.type)
        wrong = isinstance(content.get(name), bool) and field.type is not bool
        if wanted and name in content and (wrong or not isinstance(content[name], wanted)):
            raise UsageError(f"{before}{name} must be of type {field.type.__name__}, not {content[name]!r}")
        if name in ("changes", "runs", "sizes", "each") and not isinstance(content.get(name, {}), dict):
            raise UsageError(f"{before}{name} must be a table")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})


def _check(claim: Claim) -> None:
    """Refuses what cannot be tested."""
    check("equal", claim.equal, EQUAL)
    if claim.seeds < 1:
        raise UsageError(f"seeds must be at least 1, not {claim.seeds}")
    if both := sorted(set(claim.systems) & set(claim.parts)):
        raise UsageError(f"{both[0]!r} is the name of a system and of a part")
    for name, system in (*claim.systems.items(), *claim.parts.items()):
        known = [*claim.parts, *(claim.systems if name in claim.systems else ())]
        for field, other in system.runs.items():
            check(f"{name}.runs: {field}", other, known)
        for size in system.sizes:
            check(f"{name}.sizes", size, claim.sizes)
    for i, test in enumerate(claim.tests):
        where = f"tests[{i}]"
        for side in ("first", "second"):
            check(f"{where}.{side}", getattr(test, side), claim.systems)
        for name in test.ladder:
            check(f"{where}.ladder", name, claim.systems)
        if test.ladder and (test.ladder[0] != test.second or not test.measure):
            raise UsageError(f"{where}.ladder: it begins with {test.second!r}, and needs a measure")
        check(f"{where}.better", test.better, DIRECTIONS)
        check(f"{where}.rule", test.rule, RULES)
        if test.equal:
            check(f"{where}.equal", test.equal, EQUAL)
        if bool(test.measure) == bool(test.reaches):
            raise UsageError(f"{where}: give either `measure` or `reaches`")
        if not math.isfinite(test.threshold) or (test.threshold <= 0 and (test.rule == "same" or test.reaches)):
            raise UsageError(f"{where}: the threshold {test.threshold} is none that can be passed")
        if test.each and sorted(test.each) != ["field", "file"]:
            raise UsageError(f"{where}.each: give `file` and `field`")
