"""Opens the workdir of a training run for use from Python."""

import os

import jax

from transfusion.api.run import Trained
from transfusion.errors import UsageError
from transfusion.latents import open_codecs
from transfusion.running.jax_setup import keep_programs
from transfusion.running.restore import restore_params
from transfusion.tasks import SequenceTask, make_task
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.resume import as_trained


def load_run(workdir: str | os.PathLike) -> Trained:
    """Loads the newest intact checkpoint of a training run.

    Compiled programs are kept on disk as the programs keep them, unless JAX has been told where
    (`jax_compilation_cache_dir`).

    Raises:
      UsageError: if the workdir holds no run, no intact checkpoint, or a codec's run.
    """
    if jax.config.jax_compilation_cache_dir is None:
        keep_programs()
    experiment = read_experiment(workdir)
    step, params, config = restore_params(workdir, "ema" if experiment.optim.ema else "params")
    experiment = as_trained(experiment, config, workdir)
    task = make_task(experiment)
    if not isinstance(task, SequenceTask):
        raise UsageError(f"{workdir} holds an autoencoder, not a model that samples")
    return Trained(experiment, task, params, open_codecs(experiment), step, os.fspath(workdir))
