"""What a tracker is: a class of four methods."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Numbers = Mapping[str, float | int | None]


@dataclasses.dataclass(frozen=True)
class Tracked:
    """The run that is tracked.

    Attributes:
      workdir: its folder.
      id: the same for all starts of a run, and different for different runs.
      name: for people.
      project: where it belongs to.
      config: the fields of its config by their names, such as 'optim.learning_rate': numbers, truth values and texts.
      chosen: those of them that people compare: the ones that are not as they are by default, and a few of all runs.
    """

    workdir: str
    id: str
    name: str
    project: str
    config: Mapping[str, Any]
    chosen: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, uint8 [H, W, 3], with its name in the tracker, such as 'drawn/0', and a caption."""

    name: str
    image: np.ndarray
    caption: str


class Tracker(Protocol):
    """Shows a run. What it raises ends the tracker, not the run; see `apart`.

    The methods are called in this order, `start` also in the middle: when a run goes back to an earlier checkpoint.
    """

    def start(self, run: Tracked, at: int) -> None:
        """Begins to show the run after `at` steps, or continues what an earlier start of it has shown."""

    def scalars(self, step: int, numbers: Numbers) -> None:
        """Shows numbers by name; None means that there is no data."""

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        """Shows pictures with their captions."""

    def finish(self) -> None:
        """Writes what is left. A later `start` continues."""
