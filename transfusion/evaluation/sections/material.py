"""What a report is made of: a run, its metrics, its evaluation, and real examples beside those of the model."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from transfusion.api import Trained, load_run
from transfusion.config import Experiment
from transfusion.evaluation.examples import Examples, class_captions, read_examples
from transfusion.evaluation.results import read_evaluation
from transfusion.running.metrics import read_metrics

_PROMPTS = 12  # rows of the sample table
_MOST_EXAMPLES = 2000  # real images read of the training data, and of the held-out data


@dataclasses.dataclass(frozen=True)
class Material:
    """What the sections show.

    Attributes:
      seed: of the noise of the samples.
      metrics: the rows of metrics.jsonl up to the run's checkpoint.
      evaluation: the content of evaluation.json; None if there is none, or it is damaged.
      not_evaluated: why there is no evaluation.
      real, held_out: examples of the training data and of the held-out data.
    """

    workdir: pathlib.Path
    seed: int
    run: Trained
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    not_evaluated: str
    real: Examples
    held_out: Examples

    @property
    def experiment(self) -> Experiment:
        return self.run.experiment

    @property
    def draws(self) -> bool:
        """Whether the model draws images, which have two sides."""
        return self.run.sides == 2

    def prompts(self) -> list[tuple[str, np.ndarray | None, str]]:
        """(caption, a real image of it or None, remark) of the sample table."""
        captions = class_captions(self.real)
        if captions and self.experiment.eval.prompts == "labels":
            labels = self.real.labels.tolist()
            return [(c, self.real.images[labels.index(label)], "") for label, c in list(captions.items())[:_PROMPTS]]
        seen, rng = [], np.random.default_rng(self.seed)
        for examples, remark in ((self.real, "in training"), (self.held_out, "held out")):
            if examples.captioned:
                chosen = rng.permutation(len(examples))[: _PROMPTS // 2]
                seen += [(examples.captions[i], examples.images[i], remark) for i in chosen]
        return seen


def read_material(workdir: str | os.PathLike, seed: int = 0) -> Material:
    """Reads all that a report shows.

    Raises:
      UsageError: if the workdir holds no run that samples, or its data is missing.
    """
    folder, run = pathlib.Path(workdir), load_run(workdir)
    evaluation, why = read_evaluation(folder / "evaluation.json")
    data = run.experiment.data
    return Material(
        workdir=folder,
        seed=seed,
        run=run,
        metrics=[row for row in read_metrics(folder / "metrics.jsonl") if row["step"] <= run.step],
        evaluation=evaluation,
        not_evaluated=why or f"Not evaluated yet: python -m transfusion.evaluate --workdir {workdir}",
        real=read_examples(data.sources, data, _MOST_EXAMPLES),
        held_out=read_examples(run.experiment.eval.sources, data, _MOST_EXAMPLES),
    )
