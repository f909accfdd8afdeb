"""What one record may do wrong: the exceptions that make it a bad record, which is skipped, counted and named."""

import csv
import struct
import tarfile
import zlib

from transfusion.errors import UsageError

# A fault of the data or of a file. Programming errors (AttributeError, NameError, AssertionError, ...) are not among
# them and stop the run. Foreign code that raises other classes is translated where it is called.
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
    """Class and message of an error on one line of at most `limit` characters; of a UsageError the message alone."""
    name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:limit]
