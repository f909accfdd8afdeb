"""Writes configs/README.md: what each config is, in which forms it comes, how long it takes and what it shows.

python experiments/house/list_configs.py

All of it is taken from the docstrings of the config files, which are read and not run. A docstring begins with one
sentence, 'SYSTEM: what it shows.', and says after 'Hardware:' on what and how long it trains.
"""

import ast
import pathlib
import re

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
README = CONFIGS / "README.md"
HEAD = """# Configs

Each file is one experiment: its docstring says what is trained, by which commands, on what, and where it differs from
the paper. `python -m transfusion.train --config configs/digits.py --workdir runs/digits` trains one. A form is a
variant of it, as in `configs/digits.py:ddpm`; the form `debug` trains 20 steps in seconds. How the systems compare on
the same data is measured in [family_on_digits](../experiments/family_on_digits), and what each was verified against is
told in [systems](../docs/systems.md).

This page is written by `python experiments/house/list_configs.py` from the docstrings.

| config | system | forms | hardware and time | what it shows |
|---|---|---|---|---|
"""


def page() -> str:
    """The text of the page."""
    return HEAD + "".join(f"| {' | '.join(row(path))} |\n" for path in sorted(CONFIGS.glob("*.py")))


def row(path: pathlib.Path) -> tuple[str, ...]:
    """The cells of a config file.

    Raises:
      ValueError: if its docstring does not say them.
    """
    tree = ast.parse(path.read_text())
    said = ast.get_docstring(tree) or ""
    system, _, shows = first_sentence(said).partition(": ")
    shows = shows or first_sentence(after("What", said))
    if not system or not shows:
        raise ValueError(f"{path}: the docstring must begin with 'SYSTEM: what it shows.', or have a line 'What: ...'")
    forms = [f"`{form}`" for form in forms_of(tree) or re.findall(rf"configs/{path.name}:(\w+)", said) if form]
    cells = (f"[`{path.name}`]({path.name})", system.rstrip("."), ", ".join(forms), time(said), shows)
    return tuple(linked(" ".join(cell.split())) for cell in cells)


def first_sentence(text: str) -> str:
    """Up to the first full stop at the end of a line or before a capital letter, in the first paragraph."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`\d])", paragraph)[0]


def after(key: str, docstring: str) -> str:
    """What stands after 'KEY:' up to the next such line; '' without one."""
    found = re.search(rf"^{key}: (.*?)(?=^[A-Z]\w*: |\Z)", docstring, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def time(docstring: str) -> str:
    """The hardware, and the sentence about the time where there is one."""
    first, *others = re.split(r"(?<=[.;]) (?=[A-Z`])", " ".join(after("Hardware", docstring).split()))
    spoken = [first, *(sentence for sentence in others[:1] if sentence.startswith(("Time", "Not run")))]
    return " ".join(sentence.rstrip(";") for sentence in spoken).removesuffix(".")


def forms_of(tree: ast.Module) -> tuple[str, ...]:
    """What `FORMS` lists; a file without it has the forms that its docstring names."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FORMS":
            return ast.literal_eval(node.value)
    return ()


def linked(text: str) -> str:
    """The same with links to the folders of experiments that it names."""
    return re.sub(r"`?\bexperiments/(\w+)`?", r"[\1](../experiments/\1)", text)


if __name__ == "__main__":
    README.write_text(page())
