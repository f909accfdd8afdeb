"""What a supervised rank tells its supervisor while it trains, through a small file of this machine."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable

from transfusion.running.own_files import open_own

HEARTBEAT = "TRANSFUSION_HEARTBEAT"  # the environment variable with the path of a rank's file
READS, COMPUTES, EVALUATES, SAVES = "waits for data", "computes", "evaluates", "saves a checkpoint"
DONE = "has made all steps"


class Pulse:
    """Tells the supervisor of this rank how far it is; does nothing in a run without a supervisor.

    A supervised rank writes the stacks of all its threads to stderr on SIGUSR1, and asks itself to save and leave by
    SIGTERM when its supervisor is gone.
    """

    def __init__(self):
        path = os.environ.get(HEARTBEAT)
        self._file = open_own(path, os.O_WRONLY) if path else None
        self._stepped = False
        if self._file is not None:
            self._parent = os.getppid()
            faulthandler.register(signal.SIGUSR1, all_threads=True)

    def beat(self, step: int, doing: str) -> None:
        """Says that `step` updates are made, and what the rank does next. It costs microseconds."""
        if self._file is None:
            return
        os.pwrite(self._file, f"{step}|{doing}|{self._stepped}|{time.time():.3f}".ljust(72).encode(), 0)
        if self._parent and os.getppid() != self._parent:
            self._parent = 0
            os.kill(os.getpid(), signal.SIGTERM)

    def stepped(self, wait: Callable[[], object]) -> None:
        """Call after each step. After the first it calls `wait`, which returns when the step's result is there.

        Every rank has then compiled the step, and none of them waits for another's compiler any more.
        """
        if not self._stepped:
            wait()
            self._stepped = True
