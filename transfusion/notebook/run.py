"""A run in a notebook or script: what it draws and writes, its losses, scores and curves.

import transfusion
run = transfusion.load_run("runs/digits")
run.draw(["a handwritten seven"] * 8)          # pictures; also run.caption, run.generate, run.chat
run.trajectory("a handwritten seven")          # how one came out of noise
run.plot()                                     # the losses of the training
run.loss([(image, "a handwritten seven")])     # those of records of yours
run.evaluate(samples=100)                      # all scores, with their intervals
"""

import base64
import dataclasses
import html
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from transfusion import api, evaluate
from transfusion.api.prompts import Asked, Prompts, as_prompts, checked_size, whole_number
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluation.measures import Options
from transfusion.notebook.figures import Drawings, Figure, Path, Scores, curves
from transfusion.notebook.lists import Item, write_list
from transfusion.running.metrics import means, read_metrics
from transfusion.sampling.trajectory import trajectory
from transfusion.training.held_out import batch_sums

ROWS = 4  # of a batch of `Run.loss`


class Run(api.Trained):
    """A trained run, with its workdir. See `transfusion.api.Trained` for what it draws and writes."""

    def draw(self, prompts: Prompts = "", **options: Any) -> np.ndarray | list[np.ndarray]:
        """As `Trained.draw`; a notebook shows the array as pictures."""
        drawn = super().draw(prompts, **options)
        return drawn if isinstance(drawn, list) else drawn.view(Drawings)

    def trajectory(
        self, prompt: Prompts = "", *, seed: int = 0, kind: str = "", size: Sequence[int] = (0, 0), **overrides: Any
    ) -> Path:
        """How the picture of a prompt comes out of noise: that of `draw` with the same arguments.

        Raises:
          UsageError: as `draw`, and if there are several prompts, or the model draws codes.
        """
        given = as_prompts(prompt, self._several_axes)
        if not given.one:
            raise UsageError("a trajectory is that of one prompt, not of a list")
        sampler = self.sampler(**{"max_tokens": 0} | overrides)
        asked = [Asked(kind=kind, size=checked_size(size))]
        (one,) = self._prompts(given, asked, True, sampler.negative)
        seed = whole_number("seed", seed, api.MOST_SEED)
        found = trajectory(self.task, self.params, one, seed, sampler, size=checked_size(size))
        codec = self.codecs[kind or self.shows]
        return Path(found.times, *(np.stack([codec.decode(x) for x in part]) for part in (found.x, found.data)))

    def loss(self, records: Sequence[Item] | None = None, *, seed: int = 0) -> dict[str, float | None]:
        """The mean losses of records, with nothing dropped; without records, those of the held-out data.

        Args:
          records: (image, caption), texts or lists of segments; see `transfusion.notebook.lists`.
          seed: of the noise.

        Raises:
          UsageError: if a record cannot be used, or there is no held-out data.
        """
        experiment, total = dataclasses.replace(self.experiment, batch_size=ROWS), None
        with tempfile.TemporaryDirectory() as folder:
            if records is not None:
                path = write_list(records, folder, experiment)
                source = {"list": SourceConfig(kind="records", path=os.fspath(path))}
                experiment = dataclasses.replace(experiment, eval=dataclasses.replace(experiment.eval, sources=source))
            if not experiment.eval.sources:
                raise UsageError("this run has no held-out data: give records")
            sums = jax.jit(batch_sums(self.task, whole_number("seed", seed, api.MOST_SEED)))
            for i, batch in enumerate(self.task.held_out(experiment)):
                new = jax.device_get(sums(self.params, batch, np.int32(i)))
                total = new if total is None else jax.tree.map(lambda a, b: a + b, total, new)
        return means(total)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: the numbers of each step that was logged; `pandas.DataFrame` takes them."""
        return read_metrics(epath.Path(self.workdir) / "metrics.jsonl")

    def plot(self, *names: str) -> Figure:
        """A chart of numbers of `metrics` by their names; without names, of the losses.

        Raises:
          UsageError: if there is no such number.
        """
        return curves(self.metrics(), names)

    def evaluate(self, **options: Any) -> Scores:
        """Measures the run and writes evaluation.json, as `transfusion.evaluate` does.

        Args:
          options: `samples`, `captions`, `seed`, `guidance`, `steps` and `judge_steps`, as its flags.

        Raises:
          UsageError: if it cannot be measured or written.
        """
        known = [field.name for field in dataclasses.fields(Options)]
        if wrong := options.keys() - set(known):
            raise UsageError(f"no option {min(wrong)!r} of an evaluation: there are {', '.join(known)}")
        return Scores(evaluate.evaluate(self.workdir, Options(**options)))

    def _repr_html_(self) -> str:
        """The summary, with the losses and the newest picture that the run has drawn."""
        parts = [f"<pre>{html.escape(repr(self))}</pre>"]
        if rows := self.metrics():
            parts.append(curves(rows)._repr_html_())
        samples = pathlib.Path(self.workdir) / "samples"
        if newest := max(samples.glob("*.png"), key=os.path.getmtime, default=None):
            data = base64.b64encode(newest.read_bytes()).decode()
            style = "max-width: 560px; min-width: 96px; image-rendering: pixelated"
            parts.append(f'<img alt="{html.escape(newest.name)}" style="{style}" src="data:image/png;base64,{data}">')
        return "".join(parts)


def load_run(workdir: str | os.PathLike) -> Run:
    """Loads the newest intact checkpoint of a run; see `transfusion.api.load_run`.

    Raises:
      UsageError: if the workdir holds no run, no intact checkpoint, or a codec's run.
    """
    found = api.load_run(workdir)
    return Run(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})
