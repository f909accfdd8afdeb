"""Errors that a user can mend end a program with one clear line and an exit code, and without a traceback."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UsageError(Exception):
    """A mistake that a user can mend: a wrong flag, config, file or set-up.

    The message is one line that says what to do; programs end with the exit code `code`.
    """

    code = 2


class PassingError(UsageError):
    """Something outside the program failed, so that the same command may work later.

    Programs end with exit code 1, and a supervisor tries again.
    """

    code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean 'x'?)' for the known name closest to `name`, or '' if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check(where: str, value: str, known: Iterable[str]) -> None:
    """Refuses a `value` that is not one of the `known` ones.

    Raises:
      UsageError: '<where>: <value> is none of ...', with the nearest right name.
    """
    if value not in known:
        raise UsageError(f"{where}: {value!r} is none of {', '.join(known)}{nearest(value, known)}")


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional `module`.

    Raises:
      UsageError: if it is not installed, naming the extra of this package that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{module} is not installed: pip install 'transfusion[{extra}]'") from error


def shown(text: str) -> str:
    """The text in a form fit for a message: one line of printable characters, cut after 300."""
    line = text.encode("utf-8", "backslashreplace").decode()
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= 300 else f"{line[:300]}..."
