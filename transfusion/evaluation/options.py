"""What the flags of an evaluation say."""

import dataclasses

from transfusion.errors import UsageError
from transfusion.evaluation.judge import JudgeConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices that flags make; for None the config decides."""

    samples: int | None = None
    captions: int | None = None
    seed: int | None = None
    guidance: float | None = None
    steps: int | None = None
    judge_steps: int = JudgeConfig.steps
    judges: str | None = None
    similarity: str | None = None  # the folder of a released CLIP or SigLIP

    def __post_init__(self):
        for name in ("samples", "captions", "steps", "judge_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, not {value}")
