"""Parameters by path, such as 'trunk/blocks/image/q', and the expressions with which configs name them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transfusion.errors import nearest


def by_path(params: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{path: leaf} of nested dicts."""
    result = {}
    for name, child in params.items():
        result |= by_path(child, f"{above}{name}/") if isinstance(child, Mapping) else {f"{above}{name}": child}
    return result


def covered(pattern: str, path: str) -> re.Match | None:
    """The match of a regular expression that covers whole names from the path's start: 'trunk/blocks/image' covers
    'trunk/blocks/image/q' and not 'trunk/blocks/images/q'."""
    return re.match(rf"(?:{pattern})(?=/|$)", path)


def nearest_path(pattern: str, paths: Iterable[str]) -> str:
    """' (did you mean 'trunk/blocks'?)', or '': the nearest of the paths and of what stands above them."""
    return nearest(pattern, sorted({path.rsplit("/", up)[0] for path in paths for up in range(path.count("/") + 1)}))
