"""Keeps orbax and tensorstore from writing hundreds of lines when a save fails; `checkpoint.py` reports it in one."""

import functools
import logging as std_logging
import sys

from absl import logging


def one_line(error: Exception) -> str:
    """Returns the message of an error of orbax, tensorstore or the system, shortened to one line."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or "No space left" in text:
        return "no space left on the disk"
    return text if len(text) <= 300 else text[:300] + " ..."


class _QuietOrbax(std_logging.Filter):
    def filter(self, record: std_logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname or logging.get_verbosity() >= logging.DEBUG


@functools.cache
def silence() -> None:
    """Drops orbax's log records (unless absl's verbosity is debug) and a traceback of its threads, once for all."""
    logging.get_absl_logger().addFilter(_QuietOrbax())
    earlier = sys.unraisablehook

    def hook(caught) -> None:
        # A failed write of tensorstore reports to the event loop which orbax has closed after the first failure.
        if not (isinstance(caught.exc_value, RuntimeError) and str(caught.exc_value) == "Event loop is closed"):
            earlier(caught)

    sys.unraisablehook = hook
