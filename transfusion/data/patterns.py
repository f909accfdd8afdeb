"""Patterns that name several files: braces as in WebDataset (`{000..099}`, `{a,b}`) and the signs of glob (`*?[]`).

If something exists whose name is the pattern itself, that is meant: a folder may be called `set[1]`.
"""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from transfusion.errors import UsageError

_LIMIT = 100_000  # a pattern for more names than this is a mistake
_INNERMOST = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,12})\.\.(-?\d{1,12})(?:\.\.(-?\d{1,12}))?")


def files_named(pattern: str, folder: str = "") -> list[str]:
    """The files that `pattern` names, each once: in the order of its braces, those of a glob sorted by name.

    Args:
      pattern: see the module's docstring.
      folder: where the pattern is looked up. Signs in the folder's own name have no meaning.

    Raises:
      UsageError: if braces stand for a file that is missing, or for too many files.
    """
    if os.path.isfile(path := os.path.join(folder, pattern)):
        return [path]
    found: dict[str, None] = {}
    missing = []
    names = list(itertools.islice(braces(pattern), _LIMIT + 1))
    if len(names) > _LIMIT:
        raise UsageError(f"{pattern!r} stands for more than {_LIMIT} names")
    for name in names:
        path = os.path.join(folder, name)
        matches = [path] if os.path.lexists(path) else _glob(name, folder)
        if not matches:
            missing.append(path)
        found |= dict.fromkeys(matches)
    if missing and (found or missing != [os.path.join(folder, pattern)]):
        raise UsageError(f"{pattern!r} names {len(missing)} files that do not exist, such as {missing[0]!r}")
    return list(found)


def _glob(name: str, folder: str) -> list[str]:
    head, base = os.path.split(name)
    if os.path.isdir(os.path.join(folder, head)):
        head = glob.escape(head)
    pattern = os.path.join(glob.escape(folder), head, base)
    return sorted(path for path in glob.glob(pattern) if not os.path.isdir(path))


def braces(pattern: str) -> Iterator[str]:
    """Yields the names that a pattern with braces stands for. Numbers have the width of the longer end, as in a shell.

    Raises:
      UsageError: if one range alone is longer than any list of files.
    """
    match = _INNERMOST.search(pattern)
    if match is None:
        yield pattern
        return
    for part in _alternatives(match[1]):
        yield from braces(pattern[: match.start()] + part + pattern[match.end() :])


def _alternatives(text: str) -> list[str]:
    span = _RANGE.fullmatch(text)
    if span is None:
        return text.split(",")
    first, last = int(span[1]), int(span[2])
    step = abs(int(span[3] or 1)) or 1
    if abs(last - first) // step >= _LIMIT:
        raise UsageError(f"{{{text}}} stands for more than {_LIMIT} names")
    padded = any(re.match(r"-?0\d", end) for end in (span[1], span[2]))
    width = max(len(span[1]), len(span[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}}" for number in numbers]
