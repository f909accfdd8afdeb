"""Opens the workdir of a training run, or a published run, for use from Python."""

import os

import jax

from transfusion.api.run import Trained
from transfusion.errors import UsageError
from transfusion.latents import open_codecs
from transfusion.model.names import by_path
from transfusion.model.parameters import Params
from transfusion.remote.hub import local_copy
from transfusion.running.jax_setup import keep_programs
from transfusion.running.restore import restore_params
from transfusion.tasks import SequenceTask, make_task
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.resume import as_trained


def load_run(workdir: str | os.PathLike) -> Trained:
    """Loads the newest intact checkpoint of a training run, or a published run: a folder, or `hf://OWNER/NAME`.

    Compiled programs are kept on disk as the programs keep them, unless JAX has been told where
    (`jax_compilation_cache_dir`).

    Raises:
      UsageError: if the workdir holds no run, no intact checkpoint, or a codec's run, or the weights do not fit the
        model of its config.
      StorageError: if a hub cannot be reached.
    """
    workdir = local_copy(workdir)
    if jax.config.jax_compilation_cache_dir is None:
        keep_programs()
    experiment = read_experiment(workdir)
    step, params, config = restore_params(workdir, "ema" if experiment.optim.ema else "params")
    experiment = as_trained(experiment, config, workdir)
    task = make_task(experiment)
    if not isinstance(task, SequenceTask):
        raise UsageError(f"{workdir} holds an autoencoder, not a model that samples")
    _check_fits(task, params, workdir)
    return Trained(experiment, task, params, open_codecs(experiment), step, os.fspath(workdir))


def _check_fits(task: SequenceTask, params: Params, workdir: str | os.PathLike) -> None:
    """Refuses weights of other names or shapes than the model of the config has: a stranger may have written them."""
    have, want = by_path(params), by_path(task.template.shapes)
    for path in sorted({*have, *want}):
        here, there = (list(tree[path].shape) if path in tree else "missing" for tree in (have, want))
        if here != there:
            raise UsageError(
                f"{workdir}: the parameter {path} is {here} there, and {there} in the model of config.json"
            )
