"""When a training is measured, and how."""

import dataclasses

from transfusion.data.config import SourceConfig
from transfusion.errors import check


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Held-out data, and how the model is evaluated on it.

    Attributes:
      every: steps between held-out losses during training; 0: never.
      batches: how many batches they use.
      sources: the held-out data.
      samples: generated images of `transfusion.evaluate`.
      captions: held-out images that it captions.
      prompts: what the images of `transfusion.evaluate` show: 'labels' (a caption per class, cycled) or 'held_out'
        (the captions of the held-out records, and as many of the training records).
      guidances: guidance scales of the report's grids.
    """

    every: int = 1000
    batches: int = 4
    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    samples: int = 500
    captions: int = 500
    prompts: str = "labels"
    guidances: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self):
        check("eval.prompts", self.prompts, ("labels", "held_out"))


@dataclasses.dataclass(frozen=True)
class TelemetryConfig:
    """Looks inside the model while it trains, see `transfusion.training.telemetry`.

    Attributes:
      every: steps between two looks, each of which costs about one step per modality; 0: never.
    """

    every: int = 0
