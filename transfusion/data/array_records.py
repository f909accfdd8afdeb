"""Reads one record through ArrayRecord, and tells a broken record from storage that cannot be reached.

ArrayRecord's errors name the system's error in words only.
"""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from transfusion.data.faults import error_line
from transfusion.storage import insist

_T = TypeVar("_T")


def read_record(name: str, folder: str | os.PathLike, read: Callable[[], _T], reopen: Callable[[], None]) -> _T:
    """`read()`, tried again while the storage cannot be reached or fails for a moment.

    Args:
      name: names the record in errors.
      folder: where the files lie. If it is gone, its storage is away and no record is broken.
      read: reads the record.
      reopen: opens the files anew. ArrayRecord keeps a reader that failed to open, which then fails for ever.

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
        except Exception as error:  # ArrayRecord and TFDS raise any class, RuntimeError mostly
            again, failed = failed, True
            if not os.path.isdir(folder):
                raise OSError(errno.ESTALE, f"{folder} is away") from error
            if (number := _number(error)) is None:
                raise ValueError(error_line(error)) from error
            if not again:  # the reader may have kept the failure of an earlier record
                return attempt()
            raise OSError(number, os.strerror(number)) from error

    try:
        return insist(f"cannot read {name}", attempt)
    except OSError as error:
        raise ValueError(error_line(error)) from error


def _number(error: Exception) -> int | None:
    """The system's error number that an exception names in words; None if it names none."""
    if isinstance(error, OSError):
        return error.errno
    return next((number for number in errno.errorcode if f": {os.strerror(number)}" in str(error)), None)
