"""Traces a few steps with XLA's profiler: `train --profile=100:110`.

The trace is written into tensorboard/plugins/profile/ of the workdir, where the profile plugin (`pip install xprof`)
finds it, with a file perfetto_trace.json.gz beside it that https://ui.perfetto.dev opens.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.running.agreement import is_first

FOLDER = "tensorboard"
Window = tuple[int, int]  # (first, last): the steps that begin after the first one and end with the last one


def parse_window(text: str) -> Window | None:
    """The window 'FIRST:LAST' of a flag: the steps that begin after FIRST and end with LAST; None for ''.

    Raises:
      UsageError: if it is something else.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
    if not found or not int(found[1]) < int(found[2]):
        raise UsageError(f"--profile={text}: give FIRST:LAST, as in --profile=100:110 for the ten steps after step 100")
    return int(found[1]), int(found[2])


class Profile:
    """Traces the steps of a window in process 0. A trace that cannot be written stops no training.

    Args:
      window: (first, last) of `parse_window`; None traces nothing.
      workdir: gets the trace.
      paused: makes a context whose time does not count as training; a trace takes seconds to write.
    """

    def __init__(
        self,
        window: Window | None,
        workdir: str | os.PathLike,
        paused: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._paused = paused
        self._window, self._on = window if is_first() else None, False
        self._target = epath.Path(workdir) / FOLDER
        self._folder = ""

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, at: int, state: Any) -> Iterator[None]:
        """Surrounds the step after `at`, which begins with `state`; begins or ends the trace before it."""
        if self._window is None:
            yield
            return
        first, last = self._window
        if not self._on and first <= at < last:
            jax.block_until_ready(state)
            with self._paused():
                self._start()
        elif self._on and not first <= at < last:
            jax.block_until_ready(state)
            with self._paused():
                self._stop()
        with jax.profiler.StepTraceAnnotation("train", step_num=at) if self._on else contextlib.nullcontext():
            yield

    def _start(self) -> None:
        bucket = storage.is_bucket(self._target)
        self._folder = tempfile.mkdtemp() if bucket else os.path.abspath(self._target)
        with self._errors_said():
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._on = True

    def _stop(self) -> None:
        if not self._on:
            return
        self._on, self._window = False, None  # one trace per run of the program
        with self._errors_said():
            jax.profiler.stop_trace()
            if storage.is_bucket(self._target):
                _copy(epath.Path(self._folder), self._target)
            logging.info("the trace is in %s", self._target / "plugins" / "profile")

    @contextlib.contextmanager
    def _errors_said(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._window = None
            logging.warning("no trace of these steps: %s", storage.one_line(error))


def _copy(source: epath.Path, target: epath.Path) -> None:
    for path in source.glob("**/*"):
        if not path.is_dir():
            place = target / os.path.relpath(path, source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
