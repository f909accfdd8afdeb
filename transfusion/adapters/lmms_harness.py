"""A run as a model of lmms-eval: pictures, clips and sounds in, texts out.

    from transfusion.adapters.lmms_harness import open_lmm
    lmms_eval.evaluator.simple_evaluate(open_lmm("runs/omni"), tasks=[...])

lmms-eval is installed by hand (`pip install lmms-eval`), as it brings torch and fifty other packages; nothing of ours
needs it. What it hands over are instances whose `args` are

- loglikelihood: context, the target or a function of the document, a function of the document that gives its media,
  number of the document, task, split;
- generate_until: context, generation keywords, the function of the media, number, task, split;
- generate_until_multi_round: the same with the function of the next round's text before the number.
"""

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.adapters.likelihood import ROWS, Likelihood, Wanted
from transfusion.api import Trained, load_run
from transfusion.api.prompts import as_path
from transfusion.errors import UsageError
from transfusion.sequence import Document

MARK = "<image>"  # stands for one of a document's media in texts that say where each belongs
TOKENS = 1024


class RunLMM:
    """A run as lmms-eval asks models; `model_class` joins it with the harness's own class.

    Attributes:
      task_dict: the data sets of the tasks, which the harness fills in: task -> split -> documents.
    """

    task_dict: dict[str, Any]

    def __init__(self, run: Trained | str | os.PathLike, rows: int = ROWS, tokens: int = TOKENS):
        """Opens a run; arguments as those of `transfusion.adapters.lm_harness.RunLM`."""
        super().__init__()  # of the harness's class
        self.run = run if isinstance(run, Trained) else load_run(run)
        self._likelihood, self.tokens = Likelihood(self.run, int(rows)), int(tokens)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each target behind its context and media."""
        pairs = []
        for request in requests:
            context, target, visual, *where = request.args
            document = self._document_of(*where)
            target = target if isinstance(target, str) else target(document)
            _, ids = self._likelihood.encoded(context, target)
            read = self.read(context.rstrip(), visual(document))
            pairs.append((read, ids))
        return self._likelihood.score(pairs)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the run writes behind each context and its media, up to the first stop."""
        contexts, asked = [], []
        for request in requests:
            context, keywords, visual, *where = request.args
            contexts.append(self.read(context, visual(self._document_of(*where))))
            asked.append(Wanted.of(keywords, self.tokens))
        return self._likelihood.write(contexts, asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[tuple[str, ...]]:
        """As `generate_until`, round after round until the task's function says that it was the last: all answers."""
        answers: list[tuple[str, ...]] = [()] * len(requests)
        facts: list[Any] = [None] * len(requests)
        open_ones = list(range(len(requests)))
        turn = 0
        while open_ones:
            contexts, asked, goes_on = [], [], []
            for number in open_ones:
                context, keywords, visual, next_round, *where = requests[number].args
                document = self._document_of(*where)
                media = visual(document) if turn == 0 else None
                if turn:
                    media, context, last, given, facts[number] = next_round(
                        document, previous_output=list(answers[number]), round_idx=turn,
                        previous_round_info=facts[number],
                    )  # fmt: skip
                    answers[number] = tuple(given)
                    if last:
                        continue
                contexts.append(self.read(context, media))
                asked.append(Wanted.of(keywords, self.tokens))
                goes_on.append(number)
            for number, text in zip(goes_on, self._likelihood.write(contexts, asked), strict=True):
                answers[number] = (*answers[number], text)
            open_ones, turn = goes_on, turn + 1
        return answers

    def _document_of(self, number: Any, task: str, split: str) -> Any:
        """The document that a request is about, of the data sets that the harness puts into `task_dict`."""
        return self.task_dict[task][split][number]

    def read(self, context: str, media: Any) -> Document:
        """The segments of a text and its media: each at its mark if there are as many of these, else all before it."""
        media = [] if media is None else list(media) if isinstance(media, list | tuple) else [media]
        texts = context.split(MARK)
        if len(texts) != len(media) + 1:
            texts = [""] * len(media) + [context]
        parts: list[Any] = []
        for text, medium in zip(texts, [*media, None], strict=True):
            parts += [text] if text else []
            parts += [] if medium is None else [self._medium(medium)]
        return tuple(segment for part in parts for segment in self.run.segments(part))

    def _medium(self, medium: Any) -> Any:
        """A PIL image, an array or the path of a file; sounds of Hugging Face's data sets are tables."""
        if isinstance(medium, str):
            return as_path(medium)
        if isinstance(medium, dict) and "array" in medium:
            rate, wanted = medium.get("sampling_rate"), self.run.forms["sound"].rate if "sound" in self.run.forms else 0
            if rate and wanted and rate != wanted:
                raise UsageError(f"a sound of {rate} samples a second: this model reads {wanted}")
            return np.asarray(medium["array"], np.float32)
        return medium


@functools.cache
def model_class() -> type[RunLMM]:
    """`RunLMM` as a subclass of the harness's `lmms`.

    Raises:
      UsageError: if lmms-eval is not installed.
    """
    try:
        base = importlib.import_module("lmms_eval.api.model").lmms
    except ImportError as error:
        raise UsageError("lmms_eval is not installed: pip install lmms-eval") from error
    return type("RunLMM", (RunLMM, base), {})


def open_lmm(run: Trained | str | os.PathLike, **settings: Any) -> RunLMM:
    """A run, or the run of a workdir, as a model of lmms-eval; `settings` are those of `RunLMM`."""
    return model_class()(run, **settings)
