"""The table of trackers."""

import dataclasses
from collections.abc import Callable

from transfusion.errors import require
from transfusion.trackers.mlflow import MLflow
from transfusion.trackers.tensorboard import TensorBoard
from transfusion.trackers.tracker import Tracker
from transfusion.trackers.trackio import Trackio
from transfusion.trackers.wandb import WandB


@dataclasses.dataclass(frozen=True)
class Row:
    """How a tracker is made, the module that it needs, and the extra that brings the module.

    `by_id`: whether it finds a run again by its id, and not by the workdir.
    """

    make: Callable[[], Tracker]
    module: str
    extra: str
    by_id: bool = True


# A further tracker is a class of four methods and a row; `config.NAMES` has the same names.
TRACKERS: dict[str, Row] = {
    "tensorboard": Row(TensorBoard, "tensorboardX", "tensorboard", by_id=False),
    "wandb": Row(WandB, "wandb", "wandb"),
    "trackio": Row(Trackio, "trackio", "trackio"),
    "mlflow": Row(MLflow, "mlflow", "mlflow"),
}


def make(name: str) -> Tracker:
    """A tracker by its name; raises UsageError if what it needs is not installed."""
    row = TRACKERS[name]
    require(row.module, row.extra)
    return row.make()
