"""Measures how fast training is, and which share of the hardware's peak that is."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax

from transfusion.running.chips import rate_of

T = TypeVar("T")


class Throughput:
    """A clock that leaves out compilation, evaluation and checkpoints.

    Nothing counts before `begin`, which is called when the first (compiling) step is done. JAX runs ahead of Python:
    read a value of the last step before `rates` and before entering `paused`, or its time counts elsewhere.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._start: float | None = None
        self._paused = self._starved = 0.0
        self._steps = self._tokens = 0

    def begin(self) -> None:
        """Starts a new interval now."""
        self._start = self._clock()
        self._paused = self._starved = 0.0
        self._steps = self._tokens = 0

    def add(self, tokens: int, steps: int = 1) -> None:
        """Counts `steps` steps over `tokens` tokens in all; ignored before `begin`."""
        if self._start is not None:
            self._steps += steps
            self._tokens += tokens

    def starved(self, seconds: float) -> None:
        """Counts time in which the devices had nothing to do, as the next batch was not there."""
        self._starved += seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside; does not nest."""
        before = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - before

    def rates(self) -> dict[str, float | None]:
        """Returns steps_per_second, tokens_per_second, seconds_per_step and data_wait_share since the last call, and
        starts anew. The share is that of the time in which the devices waited for data.

        All are None if no step was counted.
        """
        names = ("steps_per_second", "tokens_per_second", "seconds_per_step", "data_wait_share")
        if self._start is None or not self._steps:
            return dict.fromkeys(names)
        seconds = max(self._clock() - self._start - self._paused, 1e-9)
        values = self._steps / seconds, self._tokens / seconds, seconds / self._steps
        values += (min(self._starved / seconds, 1.0),)
        self.begin()
        return dict(zip(names, values, strict=True))


class Idle:
    """Measures for how long a device has nothing to do while a batch is read.

    JAX runs ahead of the devices, so that most of the time in which Python waits for a batch costs nothing. What counts
    begins when the devices have made all steps that they were given. While Python waits, a thread looks whether they
    have, every millisecond.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, pause: float = 0.001):
        self._clock, self._pause = clock, pause
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="idle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._asked.put(None)

    def read(self, data: Iterator[T], newest: jax.Array) -> tuple[T, float]:
        """Returns (the next batch, seconds that the devices waited for it); `newest` is a result of the last step."""
        before, since = self._clock(), []
        if newest.is_ready():
            return next(data), self._clock() - before
        done = threading.Event()
        self._asked.put((newest, done, since))
        try:
            batch = next(data)
            ended = self._clock()
        finally:
            done.set()
        return batch, max(ended - since[0], 0.0) if since else 0.0

    def _watch(self) -> None:
        while (asked := self._asked.get()) is not None:
            newest, done, since = asked
            while not done.wait(self._pause):
                try:
                    ready = newest.is_ready()
                except RuntimeError:  # the next step has taken its memory: the batch is there
                    break
                if ready:
                    since.append(self._clock())
                    break


def peak_flops(devices: Sequence[jax.Device] | None = None) -> float | None:
    """Returns the bfloat16 FLOP/s of the data sheets of `devices` (default: all), None where none is known.

    A CPU has none: its data sheets name no rate that programs reach, and a rate measured at the start of a run is that
    of a machine which does something else a moment later.
    """
    devices = jax.devices() if devices is None else devices
    found = None if devices[0].platform == "cpu" else rate_of(devices[0].device_kind)
    return found and len(devices) * found


def model_flops_utilisation(flops_per_step: float, seconds: float | None, peak: float | None) -> float | None:
    """Returns the share of the peak that a step uses (PaLM, arXiv:2204.02311, appendix B).

    Args:
      flops_per_step: FLOPs of forward and backward pass that the model needs, recomputation not counted.
      seconds: per step; None gives None.
      peak: FLOP/s of all devices; None (unknown) gives None.
    """
    return None if not seconds or not peak else flops_per_step / seconds / peak
