"""Questions of kind: where the code asks of what kind a stream or a run is, found in the syntax trees of a package.

A system is described by tables, so that code need not ask. What counts as a question is said in `Kinds.conditions`.
"""

import ast
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

TYPES = ("Stream", "Run")  # the classes whose fields say of what kind something is
SETTINGS = ("config", "limits", "sampler")  # what a user asks for has properties of the same names, of no kind
# Modules that are asked in their place. A class of all but the last is a row of a table; the last one chooses, once for
# each stream, the parts and the steps by which its tokens enter the trunk.
TABLES = (
    "sequence.content", "sequence.items", "sequence.code_items", "sequence.latent_items", "sequence.position",
    "sequence.times", "sequence.spans", "model.parts",
)  # fmt: skip
# What a stream, a run or a row of these tables is called: by name, and with a dot as an attribute.
WORDS = {"stream", ".stream", "run", ".run", "content", ".content"}
# Rooms in which a run is a training run.
TRAINED = ("api", "evaluation", "evaluate", "report", "sample", "sweep", "claims")
LISTS = {"streams", "runs", "own", "contents", "POSITIONS", "TIMES", "ATTENTIONS"}  # and what many of them are called


@dataclasses.dataclass(frozen=True)
class Condition:
    """A question of kind; see `Kinds.conditions`. `raises` says that it only leads to an error."""

    module: str
    function: str
    line: int
    text: str
    raises: bool


@dataclasses.dataclass(frozen=True)
class Kinds:
    """The syntax trees of all modules by their dotted names."""

    trees: Mapping[str, ast.Module]

    @cached_property
    def members(self) -> dict[str, tuple[list[str], list[str]]]:
        """The fields and the properties of `Stream`, `Run` and the classes of the tables."""
        found = {}
        for name, tree in self.trees.items():
            for node in tree.body if "sequence" in name else ():
                if isinstance(node, ast.ClassDef) and (node.name in TYPES or _is_table(name)):
                    fields = [b.target.id for b in node.body if isinstance(b, ast.AnnAssign)]
                    found[node.name] = fields, [b.name for b in node.body if is_property(b)]
        return found

    @cached_property
    def fields(self) -> set[str]:
        return {name for members in self.members.values() for names in members for name in names}

    @cached_property
    def answers(self) -> set[str]:
        """Names of true-or-false properties of other classes that themselves read a field of a stream or run, such as
        `Layout.spelled`: asking them is asking of what kind a stream is."""
        found = set()
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name not in self.members:
                    for member in filter(is_property, node.body):
                        says = member.returns is not None and ast.unparse(member.returns) == "bool"
                        if says and self._reads(member, self._called(member, _words(module))):
                            found.add(member.name)
        return found

    @cached_property
    def conditions(self) -> list[Condition]:
        """The questions of kind in all modules but the tables'.

        One is an `if`, a ternary, a `while` or the filter of a comprehension whose test reads a field or a property of
        a `Stream`, a `Run` or a row of the tables, or one of `answers`, or asks by `isinstance` for a class of the
        tables. A stream, a run or a row is what is called so (`WORDS`), by name or as an attribute; an element of
        `LISTS`; what is annotated as one; and a variable that holds one of these. In their own classes it is `self`. It
        `raises` if it is an `if` that holds nothing but a `raise` and what prepares its message.
        """
        return [found for found in self._all if not _is_table(found.module)]

    @cached_property
    def in_tables(self) -> list[Condition]:
        """The questions that the tables' own modules ask."""
        return [found for found in self._all if _is_table(found.module)]

    @cached_property
    def _all(self) -> list[Condition]:
        return [found for name, tree in self.trees.items() for found in self._conditions(name, tree, "", _words(name))]

    def _conditions(self, module: str, node: ast.AST, function: str, names: set[str]) -> Iterator[Condition]:
        if isinstance(node, ast.ClassDef):
            function = node.name
            names = names | {"self"} if node.name in TYPES and "sequence" in module else names - {"self"}
        elif isinstance(node, ast.FunctionDef):
            function, names = f"{function}.{node.name}".lstrip("."), self._called(node, names)
        for test, raises in _tests(node):
            if self._reads(test, names, self.answers):
                yield Condition(module, function, test.lineno, ast.unparse(test), raises)
        for child in ast.iter_child_nodes(node):
            yield from self._conditions(module, child, function, names)

    def _called(self, function: ast.AST, names: set[str]) -> set[str]:
        """What a function calls streams, runs and rows, if `names` are what is called so around it."""
        names = set(names)
        for node in ast.walk(function):
            if isinstance(node, ast.arg) and node.annotation is not None:
                known = ast.unparse(node.annotation) in self.members
                names = names | {node.arg} if known else names - {node.arg}
            elif isinstance(node, ast.For | ast.comprehension):
                names |= _looped(node.target, ast.unparse(node.iter))
            elif isinstance(node, ast.Assign):
                names = _assigned(node, names)
        return names

    def _reads(self, node: ast.AST, names: set[str], answers: Iterable[str] = ()) -> bool:
        """Whether an expression or function reads a field of what `names` call a stream or run, or one of `answers`."""
        return any(self._asks(part, names, answers) for part in _asked(node))

    def _asks(self, node: ast.AST, names: set[str], answers: Iterable[str]) -> bool:
        if isinstance(node, ast.Attribute):
            of_kind = node.attr in self.fields and _is_kind(node.value, names)
            return of_kind or node.attr in answers and _last_name(node.value) not in SETTINGS
        if isinstance(node, ast.Call) and _last_name(node.func) == "isinstance":
            return any(_last_name(part) in self.members for part in ast.walk(node.args[1]))
        return False


def _asked(node: ast.AST) -> Iterator[ast.AST]:
    """An expression and its parts, without what is looked up in a table: `TABLE[stream.field]` is no question."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.Subscript) and child is node.slice and _last_name(node.value).isupper()):
            yield from _asked(child)


def _words(module: str) -> set[str]:
    """`WORDS`, without the word that means something else in this module's room."""
    trained = any(part in TRAINED for part in module.split(".")[1:2])
    return WORDS - {"run", ".run"} if trained else WORDS


def _is_table(module: str) -> bool:
    return module.partition(".")[2] in TABLES


def _tests(node: ast.AST) -> list[tuple[ast.expr, bool]]:
    """The tests of a node, and whether each one only leads to an error."""
    if isinstance(node, ast.If):
        *before, last = node.body
        simple = all(isinstance(line, ast.Assign) for line in before)
        return [(node.test, isinstance(last, ast.Raise) and simple)]
    if isinstance(node, ast.IfExp | ast.While):
        return [(node.test, False)]
    return [(test, False) for test in node.ifs] if isinstance(node, ast.comprehension) else []


def _is_kind(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is a stream, a run or a row, as far as its name tells."""
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Subscript):
        return _last_name(node.value) in LISTS
    if isinstance(node, ast.Call):
        return f".{_last_name(node.func)}" in names
    return isinstance(node, ast.Attribute) and f".{node.attr}" in names


def _assigned(node: ast.Assign, names: set[str]) -> set[str]:
    """The names after an assignment: a variable that takes one is one, and `run = Pass(...)` is none any more."""
    target, value = node.targets[0], node.value
    pairs = [(target, value)]
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        pairs = list(zip(target.elts, value.elts, strict=True))
    for to, of in pairs:
        if isinstance(to, ast.Name) and _is_kind(of, names):
            names = names | {to.id}
        elif isinstance(to, ast.Name) and isinstance(of, ast.Call):
            names = names - {to.id}
    return names


def _last_name(node: ast.AST) -> str:
    """`limits` of `limits` and of `self.limits`; '' of what is no name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _looped(target: ast.expr, over: str) -> set[str]:
    """The variable of a loop that takes streams or runs, by the text of what it loops over."""
    words = over.replace("(", " ").replace(")", " ").replace(".", " ").split()
    if not {*LISTS, "inside"} & set(words):
        return set()
    if over.endswith(".items()"):
        target = target.elts[-1] if isinstance(target, ast.Tuple) else target
    elif not (over.endswith(".values()") or "runs" in words):
        return set()
    return {target.id} if isinstance(target, ast.Name) else set()


def is_property(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(d) for d in node.decorator_list)
