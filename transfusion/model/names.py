"""Parameters by path, such as 'trunk/blocks/image/q', and the expressions with which configs name them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transfusion.errors import nearest


def by_path(params: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flattens nested dicts to {path: leaf}."""
    result = {}
    for name, child in params.items():
        result |= by_path(child, f"{above}{name}/") if isinstance(child, Mapping) else {f"{above}{name}": child}
    return result


def covered(pattern: str, path: str) -> re.Match | None:
    """Matches a regular expression against whole names from the start of a path; None if it does not match.
    'trunk/blocks/image' covers 'trunk/blocks/image/q' and not 'trunk/blocks/images/q'."""
    return re.match(rf"(?:{pattern})(?=/|$)", path)


def nearest_path(pattern: str, paths: Iterable[str]) -> str:
    """The hint ' (did you mean 'trunk/blocks'?)' with the nearest path or folder of a path; '' if none is near."""
    return nearest(pattern, sorted({path.rsplit("/", up)[0] for path in paths for up in range(path.count("/") + 1)}))
