"""Runs from Python, for scripts and notebooks: train one, interrupt it and go on, look at it, use it.

`training` trains, `lists` turns Python lists into data, and `live` shows a training in a notebook. `run` is a run to
use: it draws and writes as `transfusion.api.Trained` does, and knows its losses, scores and curves; `figures` are what
a notebook shows of these.
"""

from transfusion.notebook.run import Run, load_run
from transfusion.notebook.training import Moment, train

__all__ = ["Moment", "Run", "load_run", "train"]
