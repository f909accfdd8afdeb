"""Writes TensorBoard's files. They only show metrics.jsonl to people, so a fault here never stops a run."""

import contextlib
import os
import time
from collections.abc import Mapping

from absl import logging

from transfusion.storage import one_line

FLUSH_EVERY = 120.0  # seconds between two writes to the disk; the first comes at once


class Events:
    """Writes numbers by name and step. If that fails, it warns once and writes nothing from then on.

    tensorboardX's own SummaryWriter is not used: it writes in a thread, whose errors are tracebacks, and for which the
    program waits for ever once it has died.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = os.fspath(folder)
        self._writer = None
        self._on = True
        self._flush_at = 0.0

    def write(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """Writes one row; None is left out."""
        with self._errors_said():
            if self._on and self._writer is None:
                self._open(step)
            if self._writer is not None:
                self._add(step, numbers)

    def close(self) -> None:
        """Closes the file; a later `write` opens another, which hides what this one holds of its steps."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._errors_said():
                writer.close()

    def _open(self, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import directory_check

        directory_check(self._folder)
        self._writer = EventsWriter(os.path.join(self._folder, "events"))
        self._event(step, session_log=SessionLog(status=SessionLog.START))  # hides rows of steps that are done again
        self._flush_at = 0.0

    def _add(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        from tensorboardX.summary import scalar

        for name, number in numbers.items():
            if number is not None:
                self._event(step, summary=scalar(name, number))
        if time.monotonic() >= self._flush_at:
            self._writer.flush()
            self._flush_at = time.monotonic() + FLUSH_EVERY

    def _event(self, step: int, **content) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

    @contextlib.contextmanager
    def _errors_said(self):
        try:
            yield
        except (ImportError, OSError) as error:  # ImportError: it is optional, and so is what it needs for buckets
            reason = f"{one_line(error)}; metrics.jsonl is still written"
            logging.warning("TensorBoard files cannot be written to %s: %s", self._folder, reason)
            self._on = False
            writer, self._writer = self._writer, None
            if writer is not None:
                with contextlib.suppress(OSError):  # it tries again to write what it holds
                    writer.close()
