"""Reads the collectives of a compiled program from its HLO text.

The text is the program of one device. A computation that is called (the body of a loop, a fusion, a branch) counts as
often as its callers run it; the body of a loop counts as often as the loop's condition says.

The text is meant for people, and each version of the compiler may write it otherwise. What is not understood raises
`NotUnderstood`, because a collective that is passed over would make the sum wrong without a sign of it.
`tests/planning/programs` keeps texts of each version of jax that is allowed.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

# Bytes that a device sends in a ring of n devices. `size` is the bytes of the result; of the input for reduce-scatter.
SENT = {
    "all-gather": lambda size, n: size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
}
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}  # the names of other types end in their bits

_ARRAY = re.compile(r"\b(pred|[sufc]\d+|bf16|f8\w*)\[([\d,]*)\]")
_SOME_ARRAY = re.compile(r"\b([a-z]\w*)\[")  # also one of a type that is not known
# An instruction whose devices talk to one another, by its name, whether it is in `SENT` or new.
_TALKS = re.compile(r"\s([\w.\-]*(?<![a-z])(?:all-|reduce-scatter|collective)[\w.\-]*)\(")
_OPCODE = re.compile(r"\s([a-z][a-z0-9\-.]*)\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation|to_apply)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_IOTA = r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?"


class NotUnderstood(ValueError):
    """The text of a program is not as this module knows it; the message says what of it."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: a key of `SENT`.
      size: bytes of its result on one device; for a reduce-scatter those of its input.
      group: how many devices take part.
      far: whether a group spans several slices.
      times: how often a step runs it.
    """

    kind: str
    size: int
    group: int
    far: bool
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends per step."""
        return self.times * SENT[self.kind](self.size, self.group)


@dataclasses.dataclass(frozen=True)
class Program:
    """The collectives of a program, and how many loops run an unknown number of times (they are counted once)."""

    collectives: tuple[Collective, ...]
    unknown_loops: int

    def bytes_sent(self, far: bool | None = None) -> float:
        """Bytes that a device sends per step: all of them, or only those between slices (`far`) or within slices."""
        return sum(c.sent for c in self.collectives if far is None or c.far == far)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """For each kind the number of runs per step and the bytes that a device sends."""
        result: dict[str, dict[str, float]] = {}
        for c in self.collectives:
            entry = result.setdefault(c.kind, {"count": 0, "bytes": 0.0})
            entry["count"] += c.times
            entry["bytes"] += c.sent
        return result


def read_program(text: str, devices: int, per_slice: int) -> Program:
    """The collectives of `text`, a program for `devices` devices. Every `per_slice` devices in a row are a slice.

    Raises:
      NotUnderstood: if the text is not as expected, so that some collective might be passed over or misread.
    """
    computations, entry = computations_of(text)
    if entry not in computations:
        raise NotUnderstood("it has no entry")
    times: dict[str, int] = {}
    unknown: set[str] = set()

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for line in computations.get(name, ()):
            for called, turns in calls(line, computations, conditions=True):
                if turns is None:
                    unknown.add(called)
                if called not in computations:
                    raise NotUnderstood(f"it calls {called!r}, which is not in it")
                visit(called, count * (turns or 1))

    visit(entry, 1)
    _check_all_are_found(text, computations, times)
    collectives = [
        dataclasses.replace(found, times=count)
        for name, count in times.items()
        if not _goes_on(name, computations.get(name, ()))
        for found in _collectives(computations.get(name, ()), devices, per_slice, scatters="all-reduce-scatter" in name)
    ]
    return Program(tuple(collectives), len(unknown))


def _check_all_are_found(text: str, computations: dict[str, list[str]], times: dict[str, int]) -> None:
    """Raises NotUnderstood if the text holds collectives outside of what was read and visited, or of a new kind."""
    read = 0
    for name, lines in computations.items():
        for line in lines:
            kind = opcode(line)
            if not _TALKS.match(f" {kind}("):
                continue
            read += 1
            if _plain(kind) not in SENT:
                raise NotUnderstood(f"it has a collective {kind!r}, which is new")
            if name not in times:
                raise NotUnderstood(f"nothing that it calls runs {name!r}, which has a collective")
    strings = re.compile(r'"(?:[^"\\]|\\.)*"')  # names of operations of the Python program, and settings
    there = sum(len(_TALKS.findall(strings.sub('""', line))) for line in text.splitlines())
    if there != read:
        raise NotUnderstood(f"it names {there} collectives, of which {read} stand in instructions")


def _plain(kind: str) -> str:
    """The kind of a collective without what says that other work runs during it."""
    kind = kind.removesuffix("-start").removesuffix("-done").removesuffix("-update")
    return {"ragged-all-to-all": "all-to-all"}.get(kind, kind)


def _goes_on(name: str, lines: Sequence[str]) -> bool:
    """Whether the collectives of a computation were begun by another one.

    TPUs run other work during a collective. It then occurs in the fusion that begins it, in those that run beside it,
    and in the one that ends it.
    """
    return name.startswith("async_collective_fusion") or any('"AsyncCollectiveDone"' in line for line in lines)


def computations_of(text: str, names: bool = False) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation, one a line, and the name of the entry.

    With `names` a line ends in the operation of the Python program that it comes from, `op_name="..."`.
    """
    result: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and (header := _HEADER.match(line)) and "->" in line:
            current = result.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(line.partition(", metadata={")[0] + _metadata(line, names))
    return result, entry


def _metadata(line: str, names: bool) -> str:
    kept = [r'known_trip_count":\{"n":"\d+"\}'] + [r'op_name="[^"]*"'] * names
    return "".join(f" {part[0]}" for part in (re.search(one, line) for one in kept) if part)


def opcode(line: str) -> str:
    """The kind of an instruction, such as 'fusion'; '' for a line that is none."""
    found = _OPCODE.search(line)
    return found[1] if found else ""


def calls(line: str, computations: dict[str, list[str]], conditions: bool = False) -> Iterator[tuple[str, int | None]]:
    """The computations that an instruction runs, and how often (None if that is unknown).

    With `conditions` that of a loop is one of them: it runs once more than the body, or is counted once.
    """
    kind = _OPCODE.search(line)
    if kind is None or kind[1].endswith(("-done", "-update")):
        return
    if kind[1] == "while":
        body, condition = (re.search(rf"\b{part}=%?([\w.\-]+)", line) for part in ("body", "condition"))
        if body is None or condition is None:
            raise NotUnderstood("a loop names no body or no condition")
        turns = _turns(line, computations)
        yield body[1], turns
        if conditions:
            yield condition[1], turns + 1 if turns else 1
        return
    for name in _CALLED.findall(line):
        yield name, 1
    for names in _CALLED_LISTS.findall(line):
        for name in names.split(","):
            yield name.strip().lstrip("%"), 1


def _turns(line: str, computations: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as the compiler notes it, or as far as the loop's condition counts from 0."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = computations.get(re.search(r"condition=%?([\w.\-]+)", line)[1], [])
    constants = dict(re.findall(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", "\n".join(condition)))
    for instruction in condition:
        if "ROOT" in instruction and "direction=LT" in instruction:
            operands = re.search(r"compare\((.*?)\), direction", instruction)[1]
            found = [constants[name] for name in re.findall(r"%?([\w.\-]+)", operands) if name in constants]
            return int(found[0]) if found else None
        if "ROOT" in instruction and " fusion(" in instruction and len(constants) == 1:
            return int(*constants.values())
    return None


def _collectives(lines: list[str], devices: int, per_slice: int, scatters: bool) -> Iterator[Collective]:
    """The collectives among instructions.

    On TPUs a reduce-scatter is an all-reduce in a fusion (`scatters`) that keeps its part of the result.
    """
    for line in lines:
        kind = _OPCODE.search(line)
        name = _plain(kind[1]) if kind else ""
        if name not in SENT or kind[1].endswith(("-done", "-update")):
            continue
        group, far = _groups(line, devices, per_slice)
        before = line[: kind.start()]
        size = array_bytes(before)
        if len(_ARRAY.findall(before)) != len(_SOME_ARRAY.findall(before)) or not _ARRAY.search(before):
            raise NotUnderstood(f"a collective {kind[1]!r} has a type that is not known")
        if kind[1] in ("all-gather-start", "reduce-scatter-start"):  # (what goes in, what comes out): the larger one
            size = round(size * group / (group + 1))
        elif kind[1] in ("collective-permute-start", "all-to-all-start"):  # and the numbers of what waits, u32[]
            size = sum(_bytes(array) for array in _ARRAY.finditer(before) if array[2]) // 2
        elif name == "reduce-scatter":
            size *= group
        yield Collective("reduce-scatter" if scatters and name == "all-reduce" else name, size, group, far, 1)


def array_bytes(kind: str) -> int:
    """The bytes of a type as HLO writes it: of an array, or of all arrays of a tuple."""
    return sum(map(_bytes, _ARRAY.finditer(kind)))


def _bytes(array: re.Match) -> int:
    kind, sides = array[1], array[2]
    bits = BITS.get(kind) or int(re.sub(r"^(f8).*|^\D*(\d+)$", lambda m: "8" if m[1] else m[2], kind))
    return math.prod(int(side) for side in sides.split(",") if side) * bits // 8


def _groups(line: str, devices: int, per_slice: int) -> tuple[int, bool]:
    """How many devices a group has, and whether some group spans several slices."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        table = np.array([list(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)\}", pairs[1])])
    elif mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + _IOTA + r"\))? \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = np.arange(math.prod(sizes.values()))
        ids = _iota(*mesh.groups()[1:4]) if mesh[2] else ids
        over = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[5])]
        ids = np.moveaxis(ids.reshape(tuple(sizes.values())), over, range(-len(over), 0))
        table = ids.reshape(-1, math.prod(list(sizes.values())[axis] for axis in over))
    elif iota := re.search(r"replica_groups=" + _IOTA, line):
        table = _iota(iota[2] or iota[1], iota[2], iota[3]).reshape(_integers(iota[1]))
    elif groups := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        table = np.array([list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", groups[1])])
    elif re.search(r"(?:replica_groups|source_target_pairs)=(?!\{\})", line):
        raise NotUnderstood("the devices of a collective are written in a new way")
    else:
        table = np.arange(devices)[None]
    if not table.size or table.min() < 0 or table.max() >= devices:
        raise NotUnderstood(f"a collective is among other devices than the program's {devices}")
    slices = table // per_slice
    return table.shape[1], bool((slices != slices[:, :1]).any())


def _iota(shape: str, counted: str | None, turned: str | None) -> np.ndarray:
    """`[shape]<=[counted]T(turned)`, or `[shape]T(turned)`: 0, 1, ... in the shape `counted`, its axes turned, flat."""
    sides = _integers(counted or shape)
    ids = np.arange(math.prod(sides)).reshape(sides)
    return (ids.transpose(_integers(turned)) if turned else ids).reshape(-1)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
