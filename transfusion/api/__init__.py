"""A trained run in Python.

`run` loads a workdir; `prompts` reads what people hand in; `fitting` makes their media fit the model; `summary` is what
a notebook shows of a run.
"""

from transfusion.api.run import MOST_SEED, Trained, load_run

__all__ = ["MOST_SEED", "Trained", "load_run"]
