"""Experiments from Python: a config by name, with some of its fields replaced."""

import os
import pathlib
from typing import Any

from transfusion.config import Experiment
from transfusion.config.override import with_fields
from transfusion.programs import load_experiment
from transfusion.workdir.config_file import read_experiment


def experiment(config: str | os.PathLike | Experiment, **changes: Any) -> Experiment:
    """An experiment, to train or to look at.

    transfusion.experiment("digits")                                        # of the library, see configs/README.md
    transfusion.experiment("digits:unet", steps=2000)                       # a form of it, and a field
    transfusion.experiment("digits", **{"optim.learning_rate": 1e-3})       # a field of a table
    transfusion.experiment("my_config.py")                                  # a file of yours
    transfusion.experiment("runs/digits")                                   # what a run was trained with

    Args:
      config: see above; an experiment is taken as it is.
      changes: values by field, as `--config.FIELD=VALUE` sets them.

    Raises:
      UsageError: if there is no such config or field, or a value cannot work.
    """
    if isinstance(config, Experiment):
        return with_fields(config, changes)
    found = read_experiment(config) if pathlib.Path(config).is_dir() else load_experiment(config)
    return with_fields(found, changes) if changes else found
