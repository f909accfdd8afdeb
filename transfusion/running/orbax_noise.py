"""Handles what a failed save of orbax and tensorstore leaves behind: hundreds of log lines, and threads that wait.

`checkpoint.py` logs one line in place of the hundreds.
"""

import functools
import logging as std_logging
import sys
import threading

from absl import logging


class _QuietOrbax(std_logging.Filter):
    def filter(self, record: std_logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname or logging.get_verbosity() >= logging.DEBUG


@functools.cache
def silence() -> None:
    """Drops orbax's log records, unless absl's verbosity is debug, and a traceback of its threads, from now on."""
    logging.get_absl_logger().addFilter(_QuietOrbax())
    earlier = sys.unraisablehook

    def hook(caught) -> None:
        # A failed write of tensorstore reports to the event loop which orbax has closed after the first failure.
        if not (isinstance(caught.exc_value, RuntimeError) and str(caught.exc_value) == "Event loop is closed"):
            earlier(caught)

    sys.unraisablehook = hook


def saves_wait_in_vain() -> bool:
    """Whether threads of a failed save are left; call it once all checkpoints are closed.

    They wait minutes for each other's signals, the first of which never comes, and Python does not end before they do.
    """
    threads = [thread for thread in threading.enumerate() if not thread.daemon]
    return any(type(thread).__module__.startswith("orbax.") for thread in threads)
