"""The use of a trained run from Python.

`experiments` gives the experiment of a config; `loading` opens a workdir as a `run`, and `chat` talks to it turn by
turn; `prompts` reads the prompts that users pass; `fitting` fits their media to the model; `settings` are the flags of
the sampler; `summary` makes the short text that a notebook shows of a run.
"""

from transfusion.api.experiments import experiment
from transfusion.api.loading import load_run
from transfusion.api.run import MOST_SEED, Trained

__all__ = ["MOST_SEED", "Trained", "experiment", "load_run"]
