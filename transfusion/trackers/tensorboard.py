"""Writes TensorBoard's files: charts in groups, pictures and captions, and what the config chose under "HParams"."""

import contextlib
import html
import os
import time
from collections.abc import Sequence
from typing import Any

from transfusion.trackers.tracker import Numbers, Picture, Tracked

FLUSH_EVERY = 120.0  # seconds between two writes to the disk; the first comes at once
_COMPARED = ("loss/all", "held_out/loss")  # the columns of the page "HParams" beside the parameters


class TensorBoard:
    """Writes into the folder tensorboard/ of the workdir; `tensorboard --logdir runs` shows it.

    tensorboardX's own SummaryWriter is not used: it writes in a thread, whose errors are tracebacks, and for which the
    program waits for ever once it has died.
    """

    def __init__(self):
        self._writer: Any = None
        self._run: Tracked | None = None
        self._flush_at = 0.0

    def start(self, run: Tracked, at: int) -> None:
        """Begins a new file with the next row. It hides what older files hold of the steps from there on."""
        self.finish()
        self._run = run

    def scalars(self, step: int, numbers: Numbers) -> None:
        from tensorboardX.summary import scalar

        self._open(step)
        for name, number in numbers.items():
            if number is not None:
                self._event(step, summary=scalar(name, number))
        self._flush()

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        from tensorboardX.summary import image, text

        self._open(step)
        for picture in pictures:
            self._event(step, summary=image(f"samples/{picture.name}", picture.image, dataformats="HWC"))
        rows = "".join(f"- {name}: {html.escape(caption)}\n" for name, caption in _captions(pictures))
        self._event(step, summary=text("samples/captions", rows))
        self._flush(now=True)

    def finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError:
                with contextlib.suppress(OSError):  # it tries again to write what it holds
                    writer.close()
                raise

    def _open(self, step: int) -> None:
        if self._writer is not None:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import directory_check
        from tensorboardX.summary import hparams

        folder = os.path.join(self._run.workdir, "tensorboard")
        directory_check(folder)
        # Its own names have the second; two files of one second would be one, and files are read in the order of names.
        self._writer = EventsWriter(os.path.join(folder, "events"), f".{time.time_ns()}")
        self._event(step, session_log=SessionLog(status=SessionLog.START))  # hides rows of steps that are done again
        for summary in hparams(dict(self._run.chosen), dict.fromkeys(_COMPARED))[:2]:  # the third says that it ended
            self._event(0, summary=summary)
        self._flush_at = 0.0

    def _flush(self, now: bool = False) -> None:
        if now or time.monotonic() >= self._flush_at:
            self._writer.flush()
            self._flush_at = time.monotonic() + FLUSH_EVERY

    def _event(self, step: int, **content) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))


def _captions(pictures: Sequence[Picture]) -> list[tuple[str, str]]:
    return [(picture.name, " ".join(picture.caption.split())) for picture in pictures]
