"""Runs a tracker in a thread of its own, so that a network that fails or hangs stops no training."""

import contextlib
import queue
import threading
import time
from typing import Any

from absl import logging

from transfusion.storage import one_line
from transfusion.trackers.tracker import Tracker

WAITING = 1000  # calls that may wait; a tracker that is slower than that loses rows
PATIENCE = 60.0  # seconds that the end of a run waits for its trackers


class Apart:
    """Calls the methods of a tracker one after the other in a thread; `call` returns at once.

    If one of them raises, that is said once, and the tracker is called no more.
    """

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(WAITING)
        self._failed = self._full = self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def call(self, method: str, *arguments: Any) -> None:
        """Has the tracker's `method` called."""
        if self._failed or self._ended:
            return
        try:
            self._calls.put_nowait((method, arguments))
        except queue.Full:
            if not self._full:
                logging.warning("%s is slower than the training: it misses rows that metrics.jsonl has", self._name)
            self._full = True

    def finish(self, until: float) -> None:
        """Has the tracker finish, and waits for it, to the time `until` of `time.monotonic` at most."""
        if not self._ended and not self._failed:
            with contextlib.suppress(queue.Full):
                self._calls.put(("finish", ()), timeout=max(until - time.monotonic(), 0))
            self._thread.join(max(until - time.monotonic(), 0))
            if self._thread.is_alive():
                logging.warning("%s does not answer, and is left; metrics.jsonl has every row", self._name)
        self._ended = True

    def _run(self) -> None:
        while True:
            method, arguments = self._calls.get()
            try:
                getattr(self._tracker, method)(*arguments)
            except Exception as error:  # other people's libraries raise what they like
                self._failed = True
                reason = one_line(error) or type(error).__name__
                logging.warning(
                    "%s stopped at %s: %s; the training goes on, and metrics.jsonl has every row",
                    self._name, method, reason,
                )  # fmt: skip
                return
            if method == "finish":
                return
