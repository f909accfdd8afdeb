"""The prompts of a call, of which the rows of the decoder hold some at a time, all laid out in one shape."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.prompts import (
    Conditions,
    Prefill,
    Prompt,
    as_drawing,
    compared,
    fit_of,
    prefill_of,
    scales_of,
)
from transfusion.sequence import SequenceSpec


class Queue:
    """Hands prompts to rows in order.

    Attributes:
      fit: the shape that all prompts fit.
      held: int [B], the number of the prompt that each row holds. Rows without one hold a copy of the last prompt,
        which takes no step that the last prompt does not take.
      conditions: what guidance compares the prompts of the rows with when each kind is drawn; None without guidance.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        spec: SequenceSpec,
        drawables: Sequence[Drawable],
        config: SamplerConfig,
        rows: int,
    ):
        """`spec` and `drawables` are those of the model.

        Raises:
          UsageError: as `transfusion.sampling.prompts.prefill_of`.
        """
        self._prompts, self._of_model, self._think = prompts, (spec, drawables), config.think > 0
        self.fit = fit_of(prompts, spec, drawables, self._think)
        self.held = np.minimum(np.arange(rows), len(prompts) - 1)
        self._next = min(rows, len(prompts))
        self._compared = [_Compared(prompts, config, spec, drawables, drawn, self.held) for drawn in drawables]

    @property
    def left(self) -> int:
        """How many prompts no row has held yet."""
        return len(self._prompts) - self._next

    @property
    def conditions(self) -> tuple[Conditions | None, ...]:
        return tuple(one.conditions(self.held) for one in self._compared)

    def prefill(self, numbers: np.ndarray) -> Prefill:
        """Lays out the prompts with these numbers."""
        return prefill_of([self._prompts[i] for i in numbers], *self._of_model, self._think, self.fit)

    def admitted(self, free: np.ndarray, few: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Gives the next prompts to the rows `free`, `few` at a time: the numbers of the prompts, and their rows.

        The last part is filled up with prompts for a row that does not exist."""
        free = free[: self.left]
        for begin in range(0, len(free), few):
            part = free[begin : begin + few]
            numbers = np.arange(self._next, self._next + len(part))
            self._next += len(part)
            self.held[part] = numbers
            for one in self._compared:
                one.put(part, numbers)
            spare = few - len(part)
            yield np.pad(numbers, (0, spare), "edge"), np.pad(part, (0, spare), constant_values=len(self.held))


class _Compared:
    """The versions of the prompts with which guidance compares when one kind is drawn, as the rows hold them."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        config: SamplerConfig,
        spec: SequenceSpec,
        drawables: Sequence[Drawable],
        drawn: Drawable,
        held: np.ndarray,
    ):
        asked, own = as_drawing(prompts, drawn), config.of_kind(drawn.kind)
        self._of_model = (spec, drawables)
        self._versions = compared(asked, own, spec)
        self._fits = [fit_of(version, *self._of_model) for version in self._versions]
        self._scales = scales_of(asked, own)
        self._others = [self._laid(i, held) for i in range(len(self._versions))]

    def conditions(self, held: np.ndarray) -> Conditions | None:
        """Those of rows that hold the prompts with the numbers `held`."""
        if not self._others:
            return None
        plain, *others = self._others
        return Conditions(plain, tuple(others), tuple(scale[held] for scale in self._scales))

    def put(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Gives the `rows` the prompts with these numbers."""
        for version, prompts in enumerate(self._versions):
            if len(prompts) > 1:
                other = self._laid(version, numbers)
                jax.tree.map(lambda old, new: old.__setitem__(rows, new), self._others[version], other)

    def _laid(self, version: int, numbers: np.ndarray) -> Prefill:
        """Lays out a version of the prompts with these numbers; one that serves all has one row."""
        prompts = self._versions[version]
        shared = len(prompts) == 1
        chosen = prompts if shared else [prompts[i] for i in numbers]
        return jax.tree.map(np.array, prefill_of(chosen, *self._of_model, fit=self._fits[version]))
