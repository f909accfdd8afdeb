"""The use of a trained run from Python.

`run` loads a workdir, and `chat` talks to it turn by turn; `prompts` reads the prompts that users pass; `fitting` fits
their media to the model; `summary` makes the short text that a notebook shows of a run.
"""

from transfusion.api.run import MOST_SEED, Trained, load_run

__all__ = ["MOST_SEED", "Trained", "load_run"]
