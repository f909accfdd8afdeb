"""Opens a program's own files in a user's folder, such as a lock, a log or a heartbeat, and never through a link."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from etils import epath

from transfusion.errors import UsageError
from transfusion.storage import insist, is_bucket, lasting


def open_own(path: str | os.PathLike, flags: int) -> int:
    """Opens the regular file `path` and returns its descriptor; makes the file if it is missing, and keeps its content.

    A link in its place is refused, because a write could land anywhere, and so is a pipe, which could wait for ever.

    Args:
      flags: of os.open, such as os.O_RDWR.

    Raises:
      StorageError: if the storage fails time after time, or is full.
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


@contextlib.contextmanager
def sole_use(workdir: epath.Path, flag: str = "--workdir") -> Iterator[None]:
    """Locks a workdir against other programs of this machine, which would remove the unfinished files of this one.

    The system releases the lock when the process ends, however that happens. A bucket has no such locks, and is not
    locked.

    Args:
      flag: the flag that named the folder, for messages.

    Raises:
      UsageError: if another program has locked the folder, or it cannot be written.
    """
    if is_bucket(workdir):
        yield
        return
    what = f"{flag}: cannot write to {workdir}"
    try:
        insist(what, lambda: workdir.mkdir(parents=True, exist_ok=True))
    except FileExistsError:
        raise UsageError(f"{flag}: {workdir} is there already, and is no folder") from None
    except OSError as error:
        raise lasting(what, error) from error
    with open(open_own(workdir / ".lock", os.O_RDWR), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another program is at work in {workdir}: wait, or give another {flag}") from None
        except OSError as error:  # a network file system without locks
            raise UsageError(f"cannot lock {workdir / '.lock'}: {error.strerror}") from error
        yield
