"""Storage that is slow or fails for a while: what is tried again, how often, and the one line that follows."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging

from transfusion.errors import PassingError
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
