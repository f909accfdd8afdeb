"""Reading of one record through ArrayRecord, whose errors say only in words what the storage did."""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from transfusion.data.faults import error_line
from transfusion.storage import insist

_T = TypeVar("_T")


def read_record(name: str, folder: str | os.PathLike, read: Callable[[], _T], reopen: Callable[[], None]) -> _T:
    """`read()`; tried again while the storage is away or fails for a moment.

    Args:
      name: of the record, for the errors.
      folder: where the files lie: if it is gone, all of its records are away, and none is broken.
      reopen: opens the files anew. ArrayRecord keeps a reader that failed to open, and it fails for ever.

    Raises:
      StorageError: if the storage goes on failing.
      ValueError: if this record cannot be read, in one line.
    """

    failed = False

    def attempt() -> _T:
        nonlocal failed
        try:
            if failed:
                reopen()
            return read()
        except MemoryError:
            raise
        except Exception as error:  # ArrayRecord and TFDS raise what they like, RuntimeError mostly
            again, failed = failed, True
            if not os.path.isdir(folder):
                raise OSError(errno.ESTALE, f"{folder} is away") from error
            if (number := _number(error)) is None:
                raise ValueError(error_line(error)) from error
            if not again:  # it may be the failure of an earlier record, which the reader has kept
                return attempt()
            raise OSError(number, os.strerror(number)) from error

    try:
        return insist(f"cannot read {name}", attempt)
    except OSError as error:
        raise ValueError(error_line(error)) from error


def _number(error: Exception) -> int | None:
    """The system's error number that an exception names in words."""
    if isinstance(error, OSError):
        return error.errno
    return next((number for number in errno.errorcode if f": {os.strerror(number)}" in str(error)), None)
