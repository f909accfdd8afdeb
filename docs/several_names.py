"""Lets griffe read docstrings that say of several fields or arguments at once what they are: 'q, k: ...'."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^( *)(?:Args|Attributes):\n((?:\1 +\S.*\n?|\s*\n)+)", re.MULTILINE)


class SeveralNames(griffe.Extension):
    """Turns each entry of several names into as many entries."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub(_split, obj.docstring.value)


def _split(section: re.Match) -> str:
    indent = f"{section[1]}  "
    entries: list[list[str]] = []
    for line in section[2].rstrip().splitlines():
        if re.match(rf"{indent}\S", line):
            entries.append([])
        entries[-1].append(line.strip())
    lines = []
    for entry in entries:
        names, _, meaning = " ".join(entry).partition(":")
        lines += [f"{indent}{name}:{meaning}" for name in names.split(", ")]
    head = section[0][: section.start(2) - section.start()]
    return head + "\n".join(lines) + "\n" * (len(section[2]) - len(section[2].rstrip()))
