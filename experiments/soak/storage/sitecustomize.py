"""Storage that fails on demand: while the file $SOAK_STORAGE_FAILS exists, no file below a `checkpoints` folder can be
opened, made, moved or listed. Python runs this at its start if the folder is in PYTHONPATH; `run.py` puts it there."""

import errno
import os
import sys

_FAILS = os.environ.get("SOAK_STORAGE_FAILS", "")
_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.scandir", "os.listdir"}


def _hook(event: str, arguments: tuple) -> None:
    of_checkpoints = event in _OPERATIONS and isinstance(arguments[0], str) and "/checkpoints" in arguments[0]
    if of_checkpoints and os.path.exists(_FAILS):
        raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])


if _FAILS:
    sys.addaudithook(_hook)
