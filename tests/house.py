"""The library seen as a house: its rooms, the imports among them, its questions of kind, and its sizes.

A room is a file or a folder directly below the package. All is read from the sources with `ast`; nothing is imported,
so that any tree can be looked at. `tests/test_house.py` holds this tree to its plan, and
`experiments/house/measure.py` prints the numbers of two trees beside each other.
"""

import ast
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from kinds import Condition, Kinds

Graph = dict[str, set[str]]  # name -> the names that it imports


@dataclasses.dataclass(frozen=True)
class Module:
    """A source file: its dotted name, text and syntax tree."""

    name: str
    path: pathlib.Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""


@dataclasses.dataclass(frozen=True)
class Function:
    """A function or method, by its module and name, and the lines that it takes, its docstring included."""

    module: str
    name: str
    lines: int


@dataclasses.dataclass(frozen=True)
class House:
    """A package below the folder `path`, such as `transfusion/`."""

    path: pathlib.Path

    @cached_property
    def modules(self) -> dict[str, Module]:
        """All modules by their dotted names; a folder has the name of its `__init__`."""
        found = {}
        for path in sorted(self.path.rglob("*.py")):
            parts = path.relative_to(self.path.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text()
            found[name] = Module(name, path, text, ast.parse(text))
        return found

    @property
    def files(self) -> list[str]:
        """Modules on the top level, by their stems."""
        return sorted(path.stem for path in self.path.glob("*.py"))

    @property
    def folders(self) -> list[str]:
        """Folders on the top level that hold modules."""
        return sorted(path.name for path in self.path.iterdir() if any(path.glob("*.py")))

    def room(self, module: str) -> str:
        """The room of a module; that of the package itself is '__init__'."""
        return module.split(".")[1] if "." in module else "__init__"

    # --- imports ------------------------------------------------------------------------------------------------------

    @cached_property
    def imports(self) -> Graph:
        """All imports of each module, those inside of functions and for type checkers alone too."""
        return {name: set(self._imported(ast.walk(m.tree))) - {name} for name, m in self.modules.items()}

    @cached_property
    def loads(self) -> Graph:
        """The modules that each one loads when it is imported: not those that a function imports when it is called, nor
        those for type checkers; but the folders above what it imports."""
        result = {}
        for name, module in self.modules.items():
            found = set(self._imported(_at_import(module.tree.body)))
            result[name] = {above for each in (*found, name) for above in _and_above(each)} - {name}
        return result

    def _imported(self, nodes: Iterable[ast.AST]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.modules)
            elif isinstance(node, ast.ImportFrom) and node.module in self.modules:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in self.modules else node.module

    def closure(self, module: str) -> set[str]:
        """All modules of this package that are loaded with a module, itself included."""
        found, left = set(), [*_and_above(module)]
        while left:
            if (name := left.pop()) not in found:
                found.add(name)
                left += self.loads[name]
        return found

    def lines(self, modules: Iterable[str]) -> int:
        return sum(self.modules[name].lines for name in modules)

    @cached_property
    def arrows(self) -> Graph:
        """Which rooms each room imports."""
        result: Graph = {self.room(name): set() for name in self.modules}
        for name, others in self.imports.items():
            result[self.room(name)] |= {self.room(other) for other in others} - {self.room(name)}
        return result

    # --- questions of kind --------------------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> Kinds:
        """Streams, runs and their tables, and who asks of what kind something is."""
        return Kinds({name: module.tree for name, module in self.modules.items()})

    @property
    def conditions(self) -> list[Condition]:
        return self.kinds.conditions

    # --- sizes --------------------------------------------------------------------------------------------------------

    @cached_property
    def functions(self) -> list[Function]:
        """All functions and methods, the longest first."""
        found = [
            Function(name, node.name, node.end_lineno - node.lineno + 1)
            for name, module in self.modules.items()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.FunctionDef)
        ]
        return sorted(found, key=lambda function: -function.lines)

    def formatted_names(self) -> list[str]:
        """Where attributes are set by a name that is put together, so that no search finds it: 'module:line'."""
        return [
            f"{name}:{node.lineno}"
            for name, module in self.modules.items()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "setattr"
            and isinstance(node.args[1], ast.JoinedStr | ast.BinOp)
        ]

    def unmapped(self) -> dict[str, list[str]]:
        """Per folder the modules that the docstring of its `__init__` does not name."""
        found = {}
        for folder in sorted(path.parent for path in self.path.glob("*/**/__init__.py")):
            name = ".".join(folder.relative_to(self.path.parent).parts)
            stems = [p.stem for p in folder.glob("*.py")] + [p.parent.name for p in folder.glob("*/__init__.py")]
            said = self.modules[name].docstring
            missing = [stem for stem in sorted(stems) if not stem.startswith("__") and f"`{stem}`" not in said]
            if missing:
                found[name] = missing
        return found


# --- graphs -----------------------------------------------------------------------------------------------------------


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of nodes that reach each other."""
    reach = {name: _reached(graph, name) for name in graph}
    groups = {frozenset({name, *(n for n in reach[name] if name in reach[n])}) for name in graph if name in reach[name]}
    return [set(group) for group in groups]


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found, left = set(), [*graph[start]]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += graph[name]
    return found


def order(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes from the ground up, so that few arrows run up.

    What imports nothing that is left comes next. In a circle the next is the one that lacks the fewest imports for the
    most that import it; then each node moves to where the fewest arrows run up, until none can move.
    """
    left, line = set(graph), []
    while left:
        free = sorted(name for name in left if not graph[name] & left)
        if not free:
            users = {name: sum(name in graph[other] for other in left) for name in left}
            free = [min(left, key=lambda name: (len(graph[name] & left) - users[name], name))]
        line += free
        left -= set(free)
    moved = True
    while moved:
        moved = False
        for name in sorted(graph):
            rest = [other for other in line if other != name]
            costs = []
            for at in range(len(rest) + 1):
                above = sum(other in graph[name] for other in rest[at:])
                costs.append(above + sum(name in graph[other] for other in rest[:at]))
            if min(costs) < costs[line.index(name)]:
                at = costs.index(min(costs))
                line, moved = [*rest[:at], name, *rest[at:]], True
    return line


def upward(graph: Mapping[str, set[str]], line: Iterable[str]) -> list[tuple[str, str]]:
    """The arrows (from, to) that run up in an order that begins at the ground."""
    at = {name: number for number, name in enumerate(line)}
    return [(name, other) for name in graph for other in sorted(graph[name]) if at[other] > at[name]]


def floors(graph: Mapping[str, set[str]]) -> int:
    """How many floors the nodes stand on: the longest chain of arrows, without those that run up, and one."""
    line = order(graph)
    back, height = set(upward(graph, line)), {}
    for name in line:
        height[name] = 1 + max((height[other] for other in graph[name] if (name, other) not in back), default=0)
    return max(height.values())


# --- syntax -----------------------------------------------------------------------------------------------------------


def _at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported."""
    for node in body:
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if for_types or isinstance(node, ast.FunctionDef):
            continue
        yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            yield from _at_import(getattr(node, field, ()))


def _and_above(module: str) -> Iterator[str]:
    """A module and the folders that it lies in."""
    parts = module.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))
