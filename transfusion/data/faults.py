"""The exceptions that make a record a bad one, which is skipped, counted and named."""

import csv
import struct
import tarfile
import zlib

from transfusion.errors import UsageError

# These are faults of the data or of a file. Errors of the program (AttributeError, NameError, AssertionError, ...) are
# not among them and stop the run. Where foreign code raises other classes, its caller translates them.
RECORD_FAULTS: tuple[type[Exception], ...] = (
    UsageError,
    OSError,
    ValueError,  # UnicodeError and JSONDecodeError derive from it
    EOFError,
    RecursionError,  # JSON that is nested too deeply
    OverflowError,
    struct.error,
    csv.Error,
    tarfile.TarError,
    zlib.error,
)


def error_line(error: BaseException, limit: int = 200) -> str:
    """The class and message of an error (for a UsageError only the message) on one line, cut at `limit`."""
    name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:limit]
