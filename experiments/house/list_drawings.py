"""Writes docs/gallery.md: what each system drew from the same captions, beside its config and its scores.

python experiments/house/list_drawings.py

The drawings and the scores are those of experiments/family_on_digits, and the names those of the configs' docstrings.
"""

import ast
import importlib.util
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDY = ROOT / "experiments" / "family_on_digits"
PAGE = ROOT / "docs" / "gallery.md"
COLUMNS = 3
# What a member is called if its config has several systems.
TITLES = {
    "dit_block": "DiT's block",
    "mmdit_block": "Stable Diffusion 3's block",
    "metaqueries": "MetaQueries",
    "metaqueries_cross": "MetaQueries",
    "qwen_image": "Qwen-Image",
    "blip3o": "BLIP3-o",
}
HEAD = """# Gallery

Every system below is a config over the same code. Each was trained from scratch on the same 1,500 digits of 8x8 pixels,
with the same 850 steps and rows, in minutes on 2 CPU cores, and then drew each digit ten times from its caption with a
fixed seed. A red frame marks a drawing that the judge, an independent classifier, read as another digit. Systems that
draw codes see the digits at 28x28 pixels.

The scores are of 500 drawings and 297 held-out digits; [family_on_digits](../experiments/family_on_digits/README.md)
has their intervals, costs, and what was found out about single systems. [systems.md](systems.md) tells what each system
is verified against.
"""
# Pictures of other studies: path below experiments/, what it shows, and the page or config that says more.
OTHERS = (
    (
        "pictures/emoji_training_names",
        "Emoji of 24x24 pixels, drawn from names of the training data",
        "configs/emoji.py",
    ),
    (
        "pictures/emoji_held_out_names",
        "A person and a skin tone that the same model never saw together",
        "configs/emoji.py",
    ),
    ("few_steps/samples", "Digits in 1, 2, 4 and 8 steps", "experiments/few_steps/README.md"),
    (
        "omni_digits/examples",
        "Text, images, speech and clips made from each other",
        "experiments/omni_digits/README.md",
    ),
    ("moving/moving", "Clips of moving shapes", "experiments/moving/README.md"),
)


def page() -> str:
    """The text of the page."""
    cells = list(drawings())
    lines = ["", "|" + " |" * COLUMNS, "|" + "---|" * COLUMNS]
    for first in range(0, len(cells), COLUMNS):
        row = cells[first : first + COLUMNS]
        lines.append("| " + " | ".join(row + [""] * (COLUMNS - len(row))) + " |")
    lines += ["", "## Other pictures", "", "| | |", "|---|---|"]
    for name, words, more in OTHERS:
        lines.append(f"| ![{words}](../experiments/{name}.png) | {words} ([{more.split('/')[1]}](../{more})). |")
    lines += ["", "This page is written by `python experiments/house/list_drawings.py`."]
    return HEAD + "\n".join(lines) + "\n"


def drawings() -> Iterator[str]:
    """A cell for each system that has drawn: its picture, its name and config, and its scores."""
    scores = scores_of((STUDY / "README.md").read_text())
    for name, config in members().items():
        if not (STUDY / f"{name}.png").is_file():
            continue
        path, _, form = config.partition(":")
        link = f"[{path}](../configs/{path})" + (f", form `{form}`" if form else "")
        drawn, captions = (scores[name].get(f"{kind} accuracy", "") for kind in ("generation", "caption"))
        said = f"draws {share(drawn)} as asked"
        said += f", captions {share(captions)} right" if "%" in captions else ""
        called = TITLES.get(name) or title(path)
        yield f"![{name}](../experiments/family_on_digits/{name}.png)<br>**{called}**, `{name}`<br>{link}<br>{said}"


def members() -> dict[str, str]:
    """Name -> config of the study's members, in its order."""
    spec = importlib.util.spec_from_file_location("family_sweep", STUDY / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MEMBERS


def scores_of(text: str) -> dict[str, dict[str, str]]:
    """Name -> column -> cell of all tables in a study that begin with a column 'name'."""
    found: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[:1] == ["name"]:
            head = cells
        elif cells and head and not set(cells[0]) <= set("-: "):
            found[cells[0]] = dict(zip(head, cells, strict=False))
        elif not cells:
            head = []
    return found


def share(cell: str) -> str:
    """The number of a cell, without its interval."""
    return re.sub(r"%.*", " %", cell)


def title(config: str) -> str:
    """What the docstring of a config calls its system."""
    said = ast.get_docstring(ast.parse((ROOT / "configs" / config).read_text())) or ""
    return re.split(r":| \(| on ", " ".join(said.split()))[0]


if __name__ == "__main__":
    PAGE.write_text(page())
