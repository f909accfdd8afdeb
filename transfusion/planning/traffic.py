"""Counts the bytes that the kernels of a compiled program read and write, from its HLO text.

A kernel is an instruction that runs on its own: a fusion, a matrix product, a copy. It reads its operands and writes
its results. Of an operand of which a kernel only takes a slice, the slice counts, and so does the part of a result that
is written in place. Loops count by their turns. Caches are ignored, so the sum is an upper estimate of what memory
moves.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

from transfusion.planning.hlo import array_bytes, calls, computations_of, opcode

Instruction = tuple[str, str, list[str], str]  # type, opcode, operands, and the whole line
Body = dict[str, Instruction]

# Instructions that move nothing: names of parts of arrays, and the ends of what was counted at its start.
FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id",
    "opt-barrier", "domain",
}  # fmt: skip
CALLS = {"while", "conditional", "call", "async-start"}  # their bodies count instead of them
MOVES = {
    "copy", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "reverse",
    "copy-start", "broadcast", "iota",
}  # fmt: skip
INDEX = {"add", "compare", "select", "subtract", "multiply", "clamp"}  # of an index, not of arrays, inside of moves

# The classes of kernels, and what they do.
CLASSES = {
    "update": "norm of the gradient, finite check, AdamW, average",
    "weights": "casts, slices and copies of weights and of their gradients",
    "products": "matrix products with weights",
    "attention": "scores, softmax and values",
    "casts": "casts of activations",
    "moves": "copies and transposes of activations",
    "collectives": "exchange between devices",
    "rest": "norms, activations, losses",
}
# Dense attention by its einsums, and kernels by their names.
_ATTENTION = re.compile(r"bgqk|bgqs|bgsk|softmax|pallas_call|attend|attention_|mosaic_")
_COLLECTIVES = ("all-", "reduce-scatter", "collective-", "ragged-")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Attributes:
      kind: one of `CLASSES`.
      where: the operation of the Python program that it comes from.
      reads, writes: bytes, each time that it runs.
      times: how often a step runs it.
    """

    kind: str
    where: str
    reads: int
    writes: int
    times: int

    @property
    def moved(self) -> int:
        """Bytes per step."""
        return self.times * (self.reads + self.writes)


def kernels(text: str) -> list[Kernel]:
    """All kernels of a compiled program, given as HLO text."""
    lines, entry = computations_of(text, names=True)
    bodies = {name: dict(map(_instruction, body)) for name, body in lines.items()}
    weights = _weights(bodies.get(entry, {}))
    found: list[Kernel] = []

    def visit(name: str, times: int) -> None:
        body = bodies.get(name, {})
        for instruction in body.values():
            _, kind, _, line = instruction
            if kind in CALLS:
                for called, turns in calls(line.partition(" op_name=")[0], lines):
                    visit(called, times * (turns or 1))
            elif kind not in FREE and not kind.endswith(("-done", "-update")):
                found.append(_kernel(instruction, body, bodies, weights, times))

    visit(entry, 1)
    return found


def by_class(found: list[Kernel]) -> dict[str, int]:
    """Bytes per step of each class of kernels."""
    total: Counter[str] = Counter()
    for kernel in found:
        total[kernel.kind] += kernel.moved
    return {name: total[name] for name in CLASSES}


def _instruction(line: str) -> tuple[str, Instruction]:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    kind = opcode(line)
    before, _, after = rest.partition(f" {kind}(")
    operands = re.findall(r"%([\w.\-]+)", _inside(after))
    return name.lstrip("%"), (before, kind, operands, line)


def _inside(text: str) -> str:
    """The text up to the parenthesis that closes an instruction's operands."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i]
    return text


def _weights(entry: Body) -> set[tuple[int, ...]]:
    """The shapes of the matrices among the parameters of a training step: whole, of one layer, and as they multiply."""
    shapes = set()
    for name, (result, kind, *_) in entry.items():
        if kind == "parameter" and "params" in name:
            (sides,) = _shapes(result)
            apart = {sides, sides[1:]} if len(sides) > 2 else {sides} if len(sides) > 1 else set()
            shapes |= (
                apart | {(*s[:1], math.prod(s[1:])) for s in apart} | {(math.prod(s[:-1]), *s[-1:]) for s in apart}
            )
    return shapes


def _shapes(kind: str) -> list[tuple[int, ...]]:
    """The shapes of all arrays of a type, without axes of size 1."""
    found = re.findall(r"\[([\d,]*)\]", kind)
    return [tuple(int(side) for side in sides.split(",") if side not in ("", "1")) for sides in found]


def _kernel(
    instruction: Instruction, body: Body, bodies: dict[str, Body], weights: set[tuple[int, ...]], times: int
) -> Kernel:
    result, kind, operands, line = instruction
    where = re.search(r'op_name="([^"]*)"', line)
    where = where[1] if where else ""
    inside = bodies.get(_fused(line), {}) if kind == "fusion" else {}
    if inside:
        reads = sum(_read(inside, i, bodies) for i in range(len(operands)))
        writes = _written(inside, bodies)
    else:
        sizes = [array_bytes(body[name][0]) for name in operands if name in body]
        reads, writes = _alone(kind, sizes, array_bytes(result))
    kind = _class(instruction, inside, bodies, where)
    if kind in ("casts", "moves") and _part(instruction, inside) in weights:
        kind = "weights"
    return Kernel(kind, where, reads, writes, times)


def _part(instruction: Instruction, inside: Body) -> tuple[int, ...]:
    """The shape that a kernel writes; where it changes an array in place, the shape of what it puts there."""
    shapes = _shapes(instruction[0])
    for _, kind, operands, _ in inside.values():
        if kind == "dynamic-update-slice":
            shapes = _shapes(inside[operands[1]][0])
    return max(shapes, key=math.prod, default=())


def _alone(kind: str, sizes: list[int], result: int) -> tuple[int, int]:
    """What an instruction outside of fusions reads and writes, from the bytes of its operands and its result."""
    if kind in ("dynamic-slice", "slice"):
        return result, result
    if kind == "gather":
        return result + sum(sizes[1:]), result
    if kind == "dynamic-update-slice":
        return sum(sizes[1:]), sizes[1]
    if kind == "scatter":
        return 2 * sizes[-1] + sum(sizes[1:-1]), sizes[-1]
    return sum(sizes), result


def _fused(line: str) -> str:
    found = re.search(r"calls=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _parameter(inside: Body, number: int) -> str:
    return next((n for n, (_, k, _, line) in inside.items() if k == "parameter" and f"parameter({number})" in line), "")


def _read(inside: Body, number: int, bodies: dict[str, Body]) -> int:
    """Bytes that a fused computation reads of one operand."""
    name = _parameter(inside, number)
    return _used(inside, name, bodies) if name else 0


def _used(inside: Body, name: str, bodies: dict[str, Body]) -> int:
    """Bytes of an array inside of a fusion that its users need: slices of it, or all."""
    whole, parts = array_bytes(inside[name][0]), 0
    for user, (result, kind, operands, line) in inside.items():
        for place, operand in enumerate(operands):
            if operand != name:
                continue
            if kind in ("dynamic-slice", "slice", "gather") and place == 0:
                parts += array_bytes(result)
            elif kind == "dynamic-update-slice" and place == 0:
                parts += 0  # what is not overwritten stays where it is
            elif kind == "bitcast":
                parts += _used(inside, user, bodies)
            elif kind == "fusion" and _fused(line) in bodies:
                parts += _read(bodies[_fused(line)], place, bodies)
            else:
                return whole
    return min(parts, whole)


def _written(inside: Body, bodies: dict[str, Body]) -> int:
    """Bytes that a fused computation writes; of an array that it changes in place, the part that it changes."""
    root = next((name for name, (_, _, _, line) in inside.items() if line.lstrip().startswith("ROOT ")), None)

    def of(name: str) -> int:
        result, kind, operands, line = inside[name]
        if kind == "tuple":
            return sum(of(operand) for operand in operands if operand in inside)
        if kind == "bitcast" and operands and operands[0] in inside:
            return min(of(operands[0]), array_bytes(result))
        if kind == "dynamic-update-slice":
            return array_bytes(inside[operands[1]][0])
        return array_bytes(result)

    return of(root) if root else 0


def _class(instruction: Instruction, inside: Body, bodies: dict[str, Body], where: str) -> str:
    _, kind, _, line = instruction
    kinds = set(_kinds(inside, bodies)) if inside else {kind}
    if kind.startswith(_COLLECTIVES):
        return "collectives"
    if _ATTENTION.search(where) or _has_scores(instruction, inside):
        return "attention"
    if "jvp(" not in where and "jit(" in where and "dot" not in kinds:
        return "update"  # what is neither the loss nor its gradient
    gemm = kind == "custom-call" and re.search(r'custom_call_target="[^"]*(gemm|matmul|dot|cublas)', line, re.I)
    if gemm or "dot" in kinds or "convolution" in kinds:
        return "products"
    own = kinds - FREE - MOVES - INDEX
    if not own and kind != "custom-call":
        return "moves"
    return "casts" if own == {"convert"} else "rest"


def _has_scores(instruction: Instruction, inside: Body) -> bool:
    """Whether a kernel touches an array with a number for each pair of tokens, as attention without a kernel does."""
    for result, *_ in (instruction, *inside.values()):
        for sides in _shapes(result):
            long = [side for side in sides if side >= 512]
            if len(long) != len(set(long)) and (len(sides) > 3 or "pred" in result):
                return True
    return False


def _kinds(inside: Body, bodies: dict[str, Body]) -> Iterator[str]:
    """The opcodes inside of a fusion, except those that compute an index or are constants."""
    for result, kind, _, line in inside.values():
        if kind == "fusion" and _fused(line) in bodies:
            yield from _kinds(bodies[_fused(line)], bodies)
        elif "[]" not in result:
            yield kind
