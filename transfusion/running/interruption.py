"""Signals that end a run after its running step."""

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Makes SIGTERM and Ctrl-C ask for a checkpoint after the running step; they would end the process at once.

    As a context manager it encloses everything that must still be done after that step, until the checkpoint is written
    and all is closed, because a launcher may signal more than once. Until `listen` is called there is nothing to save,
    and signals end the process as usual. A second SIGTERM changes nothing; a second Ctrl-C ends the process at once.

    Of several processes it is enough that one is signalled: jax's coordinator finds a step, a few later, after which
    all stop. There jax itself handles SIGTERM, which a handler in Python would prevent.
    """

    def __init__(self):
        self._several = jax.distributed.is_initialized()
        self._asked = self._interrupted = self.requested = False
        self._before = {}

    def __enter__(self) -> "Interruption":
        return self

    def listen(self) -> None:
        """Makes signals ask for a checkpoint from now on, up to the end of the context."""
        with contextlib.suppress(ValueError):  # not in the main thread (a notebook's worker): as without this class
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` steps. Every process calls it after each step."""
        self.requested = multihost_utils.reached_preemption_sync_point(step) if self._several else self._asked
        return self.requested

    def request(self) -> None:
        """Asks for the end of the run, as a signal does."""
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True

    def _ask(self, number, frame) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            # Not by print or logging, which the signal may have interrupted.
            os.write(2, b"\ninterrupted: saves after this step and ends; once more ends it at once\n")
        if not self._asked and self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
