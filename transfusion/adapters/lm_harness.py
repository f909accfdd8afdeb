"""A run as a model of lm-eval (EleutherAI's harness): any run that writes text answers its tasks.

    from transfusion.adapters.lm_harness import open_lm
    lm_eval.simple_evaluate(open_lm("runs/digits"), tasks=[...])

Needs the extra `lm-eval`. Neither torch nor transformers is imported.
"""

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.adapters.likelihood import ROWS, Likelihood, Wanted, windows
from transfusion.api import Trained, load_run
from transfusion.errors import UsageError, require

_EXTRA = "lm-eval"
TOKENS = 256  # the most that is written where a task does not say it, as with the harness's other models


class RunLM:
    """A run as lm-eval asks models; `model_class` joins it with the harness's own class.

    A text that is longer than a training row is read in windows (`loglikelihood_rolling`), or without its beginning
    (contexts of the other two).
    """

    def __init__(self, run: Trained | str | os.PathLike, rows: int = ROWS, max_length: int = 0, tokens: int = TOKENS):
        """Opens a run.

        Args:
          run: a run, or its workdir.
          rows: requests that are computed at a time.
          max_length: the most ids that are read at once; 0: as many as a row of the training.
          tokens: the most ids that are written where a task does not say it.
        """
        super().__init__()  # of the harness's class
        self.run = run if isinstance(run, Trained) else load_run(run)
        self._likelihood = Likelihood(self.run, int(rows))
        self.max_length = int(max_length) or self._likelihood.most
        self.tokens = int(tokens)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.run.task.tokenizer.sha256 or "bytes"

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each continuation behind its context."""
        pairs = []
        for request in requests:
            context, ids = self._likelihood.encoded(*request.args)
            if len(ids) > self.max_length:
                raise UsageError(f"a continuation of {len(ids)} ids: at most {self.max_length} are read at once")
            room = self.max_length - len(ids)
            pairs.append((self._likelihood.text(context[len(context) - min(room, len(context)) :]), ids))
        return self._kept("loglikelihood", requests, self._likelihood.score(pairs))

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """The log-probability of each whole text."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            for context, ids in windows(self.run.task.tokenizer.encode(request.args[0]), self.max_length):
                pairs.append((self._likelihood.text(context), ids))
                owners.append(number)
        logs = [log for log, _ in self._likelihood.score(pairs)]
        totals = np.bincount(owners, logs, len(requests)).tolist() if owners else []
        return self._kept("loglikelihood_rolling", requests, totals)

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """What the run writes behind each context, up to the first stop."""
        asked = [Wanted.of(request.args[1], self.tokens) for request in requests]
        contexts = []
        for request, wanted in zip(requests, asked, strict=True):
            ids = self.run.task.tokenizer.encode(request.args[0])
            contexts.append(self._likelihood.text(ids[max(0, len(ids) - max(1, self.max_length - wanted.tokens)) :]))
        return self._kept("generate_until", requests, self._likelihood.write(contexts, asked))

    def _kept(self, name: str, requests: Sequence[Any], results: list) -> list:
        """Tells the harness's cache, if it has one."""
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(name, request.args, result)
        return results


@functools.cache
def model_class() -> type[RunLM]:
    """`RunLM` as a subclass of the harness's `LM`.

    Raises:
      UsageError: if lm-eval is not installed.
    """
    return type("RunLM", (RunLM, require("lm_eval.api.model", _EXTRA).LM), {})


def open_lm(run: Trained | str | os.PathLike, **settings: Any) -> RunLM:
    """A run, or the run of a workdir, as a model of lm-eval; `settings` are those of `RunLM`."""
    return model_class()(run, **settings)


def evaluate(
    lm: RunLM, tasks: Sequence[str], folder: str = "", limit: int | None = None, fewshot: int | None = None
) -> dict[str, Any]:
    """Runs tasks of lm-eval, and returns its results.

    Args:
      lm: the run.
      tasks: names of tasks, of the harness's own or of `folder`.
      folder: of YAML files with further tasks, for example on local files.
      limit: documents of each task; None: all.
      fewshot: examples before each question; None: as the task says.

    Raises:
      UsageError: if there is no such task.
    """
    manager = _manager(tasks, folder)
    return require("lm_eval.evaluator", _EXTRA).simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=fewshot, bootstrap_iters=1000,
    )  # fmt: skip


def _manager(tasks: Sequence[str], folder: str) -> Any:
    """Finds the tasks: in `folder` alone if all are there, as to read all that the harness has takes ten seconds."""
    manager_of = require("lm_eval.tasks", _EXTRA).TaskManager
    for own in (True, False) if folder else (False,):
        manager = manager_of(include_path=folder or None, include_defaults=not own)
        missing = [name for name in tasks if not manager.match_tasks([name])]
        if not missing:
            return manager
    raise UsageError(f"lm-eval knows no task {missing[0]!r}: give its name, and --tasks_dir for tasks of your own")


def table(results: dict[str, Any]) -> str:
    """The harness's table of its results."""
    return require("lm_eval.utils", _EXTRA).make_table(results)


def save(results: dict[str, Any], path: str | os.PathLike, run: Trained) -> None:
    """Writes results as JSON, without the single answers, and with the run's step."""
    kept = {
        name: results[name] for name in ("results", "versions", "n-shot", "n-samples", "configs") if name in results
    }
    about = {"workdir": run.workdir, "step": int(run.step)}
    storage.make_folder(pathlib.Path(path).parent)
    storage.write_whole(path, json.dumps(about | kept, indent=2, default=str))
