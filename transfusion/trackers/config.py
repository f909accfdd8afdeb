"""The settings of trackers."""

import dataclasses

from transfusion.errors import check

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")  # the rows of `table.TRACKERS`, besides jsonl


@dataclasses.dataclass(frozen=True)
class TrackersConfig:
    """Where the numbers and pictures of a run are shown; metrics.jsonl is always written.

    Keys and addresses are no settings: each library reads its own environment variables and files, such as
    WANDB_API_KEY, TRACKIO_SPACE_ID and MLFLOW_TRACKING_URI.

    Attributes:
      names: the trackers; none is `()`. `train --trackers=tensorboard,wandb` replaces them.
      project: the project, or experiment, in which W&B, Trackio and MLflow put the run.
      run: the run's name there; '' is the name of the workdir.
      pictures: how many held-out captions are drawn, and images captioned, at each evaluation; 0: none. The first
        time, this compiles the sampler.
    """

    names: tuple[str, ...] = ("tensorboard",)
    project: str = "transfusion"
    run: str = ""
    pictures: int = 0

    def __post_init__(self):
        for name in self.names:
            check("trackers.names", name, NAMES)
