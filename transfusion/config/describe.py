"""What every field of a config is called, holds and means, read from the classes: nothing is written twice.

A class says what a field means under 'Attributes:' in its docstring, for one or several fields ('low, high: the
interval ...'), or in a comment behind the field.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """A field: its type and default as they are written in Python ('' without a default), and what it means."""

    name: str
    type: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A class of fields.

    Attributes:
      path: where it first stands in an experiment, such as 'optim.groups[]' or 'streams.NAME'; '' for the experiment.
      kind: the class.
      says: its docstring without the fields.
      fields: in the order of the class.
    """

    path: str
    kind: type
    says: str
    fields: tuple[Field, ...]


def sections(kind: type, path: str = "") -> list[Section]:
    """The class and all classes of its fields, depth first, each where it occurs for the first time."""
    found: dict[type, Section] = {}
    _collect(kind, path, found)
    return list(found.values())


def _collect(kind: type, path: str, found: dict[type, Section]) -> None:
    if kind in found:
        return
    says, meanings = documented(kind)
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    rows = (Field(f.name, _type(hints[f.name]), _default(f), meanings.get(f.name, "")) for f in fields)
    found[kind] = Section(path, kind, says, tuple(rows))
    for name, hint in hints.items():
        for inner, where in _inside(hint, f"{path}.{name}".lstrip(".")):
            _collect(inner, where, found)


def _inside(hint: Any, path: str) -> list[tuple[type, str]]:
    """The config classes in a type, and the paths at which they stand."""
    if dataclasses.is_dataclass(hint):
        return [(hint, path)]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if not arguments:
        return []
    mark = "" if origin in (typing.Union, types.UnionType) else "[]" if origin is tuple else ".NAME"
    return [pair for argument in arguments for pair in _inside(argument, path + mark)]


def documented(kind: type) -> tuple[str, dict[str, str]]:
    """A class's docstring without its fields, and what the class says of each field."""
    said = inspect.getdoc(kind) or ""
    if said.startswith(f"{kind.__name__}("):  # the signature that `dataclass` puts in place of a docstring
        said = ""
    before, _, fields = said.partition("\nRaises:\n")[0].partition("\nAttributes:\n")
    entries: list[list[str]] = []
    for line in fields.splitlines():
        if re.match(r"  \w", line):
            entries.append([])
        if entries and line.startswith("  "):
            entries[-1].append(line.strip())
    meanings = _comments(kind)
    for entry in entries:
        names, _, meaning = " ".join(entry).partition(":")
        meanings |= dict.fromkeys(names.split(", "), meaning.strip())
    return before.strip(), meanings


def _comments(kind: type) -> dict[str, str]:
    """The comments behind the fields of a class."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (tree,) = ast.parse(source).body
    fields = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    lines = {node.target.id: range(node.lineno, node.end_lineno + 1) for node in fields}
    return {name: comments[line] for name, among in lines.items() for line in among if line in comments}


def _type(hint: Any) -> str:
    if typing.get_args(hint):
        return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", str(hint))
    return hint.__name__


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}()"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:76]} ..."
