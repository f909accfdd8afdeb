"""Measures how fast training is, and which share of the hardware's peak that is."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from transfusion.running.chips import chip_of


class Throughput:
    """A clock that leaves out compilation, evaluation and checkpoints.

    Nothing counts before `begin`, which is called when the first (compiling) step is done. JAX runs ahead of Python:
    read a value of the last step before `rates` and before entering `paused`, or its time counts elsewhere.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._start: float | None = None
        self._paused = 0.0
        self._steps = self._tokens = 0

    def begin(self) -> None:
        """Starts a new interval now."""
        self._start = self._clock()
        self._paused = 0.0
        self._steps = self._tokens = 0

    def add(self, tokens: int, steps: int = 1) -> None:
        """Counts `steps` steps over `tokens` tokens in all; ignored before `begin`."""
        if self._start is not None:
            self._steps += steps
            self._tokens += tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside; does not nest."""
        before = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - before

    def rates(self) -> dict[str, float | None]:
        """Returns steps_per_second, tokens_per_second and seconds_per_step since the last call, and starts anew.

        All are None if no step was counted.
        """
        names = ("steps_per_second", "tokens_per_second", "seconds_per_step")
        if self._start is None or not self._steps:
            return dict.fromkeys(names)
        seconds = max(self._clock() - self._start - self._paused, 1e-9)
        values = self._steps / seconds, self._tokens / seconds, seconds / self._steps
        self.begin()
        return dict(zip(names, values, strict=True))


def peak_flops(devices: Sequence[jax.Device] | None = None) -> float | None:
    """Returns the bfloat16 FLOP/s of the data sheets of `devices` (default: all), None where none is known.

    A CPU has none: its data sheets name no rate that programs reach, and a rate measured at the start of a run is that
    of a machine which does something else a moment later.
    """
    devices = jax.devices() if devices is None else devices
    found = None if devices[0].platform == "cpu" else chip_of(devices[0].device_kind)
    return found and len(devices) * found[1].flops


def model_flops_utilisation(flops_per_step: float, seconds: float | None, peak: float | None) -> float | None:
    """Returns the share of the peak that a step uses (PaLM, arXiv:2204.02311, appendix B).

    Args:
      flops_per_step: FLOPs of forward and backward pass that the model needs, recomputation not counted.
      seconds: per step; None gives None.
      peak: FLOP/s of all devices; None (unknown) gives None.
    """
    return None if not seconds or not peak else flops_per_step / seconds / peak
