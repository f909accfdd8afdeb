"""The prompts of a call, of which the rows of the decoder hold some at a time, all laid out in one shape."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.prompts import Conditions, Prefill, Prompt, compared, fit_of, has_images, prefill_of
from transfusion.sequence import SequenceSpec


class Queue:
    """Hands prompts to rows in order.

    Attributes:
      fit: the shape that all prompts fit.
      held: int [B], the number of the prompt that each row holds. Rows without one hold a copy of the last prompt,
        which takes no step that the last prompt does not take.
      conditions: what guidance compares the prompts of the rows with; None without guidance.
    """

    def __init__(
        self, prompts: Sequence[Prompt], spec: SequenceSpec, drawn: Drawable | None, config: SamplerConfig, rows: int
    ):
        """`spec` and `drawn` are those of the model.

        Raises:
          UsageError: as `transfusion.sampling.prompts.prefill_of`.
        """
        self._prompts, self._of_model, self._think = prompts, (spec, drawn), config.think > 0
        self.fit = fit_of(prompts, spec, drawn, self._think)
        self.held = np.minimum(np.arange(rows), len(prompts) - 1)
        self._next = min(rows, len(prompts))
        self._versions = compared(prompts, config, spec) if drawn else []
        self._fits = [fit_of(version, spec, drawn) for version in self._versions]
        self._with_images = np.array([has_images(prompt) for prompt in prompts])
        self._others = [self._other(i, self.held) for i in range(len(self._versions))]

    @property
    def left(self) -> int:
        """How many prompts no row has held yet."""
        return len(self._prompts) - self._next

    @property
    def conditions(self) -> Conditions | None:
        if not self._others:
            return None
        plain, *others = self._others
        return Conditions(plain, others[0] if others else None, self._with_images[self.held])

    def prefill(self, numbers: np.ndarray) -> Prefill:
        """Lays out the prompts with these numbers."""
        return prefill_of([self._prompts[i] for i in numbers], *self._of_model, self._think, self.fit)

    def _other(self, version: int, numbers: np.ndarray) -> Prefill:
        """Lays out a version of the prompts with these numbers; one that serves all has one row."""
        prompts = self._versions[version]
        shared = len(prompts) == 1
        chosen = prompts if shared else [prompts[i] for i in numbers]
        return jax.tree.map(np.array, prefill_of(chosen, *self._of_model, fit=self._fits[version]))

    def admitted(self, free: np.ndarray, few: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Gives the next prompts to the rows `free`, `few` at a time: the numbers of the prompts, and their rows.

        The last part is filled up with prompts for a row that does not exist."""
        free = free[: self.left]
        for begin in range(0, len(free), few):
            part = free[begin : begin + few]
            numbers = np.arange(self._next, self._next + len(part))
            self._next += len(part)
            self.held[part] = numbers
            for version, prompts in enumerate(self._versions):
                if len(prompts) > 1:
                    other = self._other(version, numbers)
                    jax.tree.map(lambda old, new, part=part: old.__setitem__(part, new), self._others[version], other)
            spare = few - len(part)
            yield np.pad(numbers, (0, spare), "edge"), np.pad(part, (0, spare), constant_values=len(self.held))
