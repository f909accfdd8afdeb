"""Files that a program opens for itself in a folder of the user's: a lock, a log, a heartbeat. Never through a link."""

import os
import stat

from transfusion.errors import UsageError
from transfusion.storage import insist, lasting


def open_own(path: str | os.PathLike, flags: int) -> int:
    """A file descriptor of the regular file `path`, which is made if it is missing and keeps what it holds.

    A link in its place could lead anywhere, and what is written would land there; a pipe could wait for ever.

    Args:
      flags: of os.open, such as os.O_RDWR.

    Raises:
      StorageError: if the storage fails and goes on failing, or is full.
      UsageError: if something else than a regular file is there, or the file cannot be opened.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if os.path.lexists(path):  # checked once more below, as it may change
            _refuse(path, os.lstat(path).st_mode)
        file = insist(f"cannot write to {path}", lambda: os.open(path, flags, 0o666))
    except OSError as error:
        raise lasting(f"cannot write to {path}", error) from error
    try:
        _refuse(path, os.fstat(file).st_mode)
    except UsageError:
        os.close(file)
        raise
    return file


def _refuse(path: str | os.PathLike, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise UsageError(f"{path} is a link, and a program's own files are not opened through one: remove it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is no regular file, but a program writes one of that name: remove it")
