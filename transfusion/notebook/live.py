"""Shows a training in a notebook: a line of progress, the losses, and what the model draws at each evaluation."""

import base64
import html
import sys
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.evaluation.examples import read_examples
from transfusion.notebook.figures import curves, png
from transfusion.running.metrics import progress_text

PICTURES = 4


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, and not a script or a terminal."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


class Live:
    """Shows a training below the cell that runs it; a callback of `transfusion.train`, and a context manager."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._rows: list[dict[str, Any]] = []
        self._drawn, self._captions, self._handle = "", None, None

    def __enter__(self) -> "Live":
        from IPython.display import HTML, display  # only notebooks have it

        self._html = HTML
        self._handle = display(HTML("<pre>compiling ...</pre>"), display_id=True)
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and not self._rows:
            self._handle.update(self._html("<pre>nothing to do: all steps are made</pre>"))

    def __call__(self, moment: Any) -> None:
        self._rows.append(dict(moment.row))
        config = self._experiment
        if config.eval.every and (moment.step % config.eval.every == 0 or moment.step == config.steps):
            self._drawn = self._pictures(moment)
        line = progress_text(moment.step, config.steps, moment.row)
        parts = [f"<pre>step {moment.step}/{config.steps}  {html.escape(line)}</pre>", curves(self._rows)._repr_html_()]
        self._handle.update(self._html("".join([*parts, self._drawn])))

    def _pictures(self, moment: Any) -> str:
        """What the model draws for the first held-out captions; '' if it draws no images."""
        run = moment.run
        if "image" not in run.draws:
            return ""
        if self._captions is None:
            sources = self._experiment.eval.sources or self._experiment.data.sources
            self._captions = list(read_examples(sources, self._experiment.data, PICTURES).captions)
        try:
            images = run.draw(self._captions or [""])
        except UsageError as error:
            return f"<pre>{html.escape(str(error))}</pre>"
        data = base64.b64encode(png(list(images), self._captions or None)).decode()
        return f'<img alt="drawn after {moment.step} steps" src="data:image/png;base64,{data}">'
