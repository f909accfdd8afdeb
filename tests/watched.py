"""What code opens, and how much memory it takes, while a test watches it."""

import contextlib
import os
import sys
import tracemalloc
from collections.abc import Iterator

_watching: list[list[str]] = []


def _hook(event: str, arguments: tuple) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        if not path.endswith((".py", ".pyc")):  # Python's own modules, when they are imported
            _watching[-1].append(os.path.realpath(path))


sys.addaudithook(_hook)  # it cannot be taken away again


@contextlib.contextmanager
def opened() -> Iterator[list[str]]:
    """The real paths of the files that are opened, to read or to write."""
    paths: list[str] = []
    _watching.append(paths)
    try:
        yield paths
    finally:
        _watching.pop()


@contextlib.contextmanager
def confined(folder: str | os.PathLike, megabytes: int = 50) -> Iterator[None]:
    """Asserts that no file outside of `folder` is opened, and that Python takes no more memory, numpy's included."""
    tracemalloc.start()
    try:
        with opened() as paths:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    outside = [path for path in paths if not path.startswith(os.path.realpath(folder) + os.sep)]
    assert not outside
    assert peak < megabytes * 2**20, f"{peak / 2**20:.0f} MiB"
