"""Storage that is slow or fails for a while: what is tried again, how often, and the one line that follows."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging
from etils import epath

from transfusion.errors import PassingError, UsageError
from transfusion.orbax_noise import one_line

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
# Another try helps against none of these.
_LASTING = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


class StorageError(PassingError):
    """Storage failed, and went on failing."""


def may_pass(error: OSError) -> bool:
    """Whether another try may work."""
    return error.errno is not None and error.errno not in _LASTING


def insist(what: str, action: Callable[[], T]) -> T:
    """`action()`, tried again after each of `PAUSES` while it raises an OSError that may pass. It must be repeatable.

    Raises:
      StorageError: '<what>: <reason>', if the last try fails.
      OSError: what another try cannot change, such as a file that does not exist.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except OSError as error:
            if not may_pass(error):
                raise
            reason = one_line(error)
        if pause is None:
            raise StorageError(f"{what}: {reason} ({len(PAUSES) + 1} attempts)")
        logging.warning("%s: %s; trying again in %g s", what, reason, pause)
        time.sleep(pause)
    raise AssertionError


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Replaces a text file as a whole: a reader, or a process that dies here, meets the old text or the new one.

    Raises:
      StorageError: if the storage fails and goes on failing, or is full (the same command may work later).
      UsageError: if the path cannot be written at all.
    """
    path = epath.Path(path)
    temporary = path.with_name(path.name + ".tmp")

    def write() -> None:
        temporary.write_text(text)
        temporary.replace(path)

    try:
        insist(f"cannot write {path}", write)
    except OSError as error:
        raise lasting(f"cannot write {path}", error) from error


def lasting(what: str, error: OSError) -> UsageError:
    """The one-line error for what `insist` did not try again: a full disk may have room later, the rest stays so."""
    kind = StorageError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UsageError
    return kind(f"{what}: {one_line(error)}")
