"""Reads the config.json of a run."""

import os

from etils import epath

from transfusion import storage
from transfusion.config import Experiment, from_json
from transfusion.errors import UsageError
from transfusion.remote.hub import local_copy
from transfusion.workdir import portable

_MOST_BYTES = 16 << 20  # no config is as large


def read_experiment(workdir: str | os.PathLike) -> Experiment:
    """The experiment in the config.json of a workdir or of `hf://OWNER/NAME`; its tokenizer and codec are found there,
    see `workdir.portable`.

    What the weights were trained with is in their checkpoint: see `transfusion.workdir.resume.as_trained`.

    Raises:
      UsageError: if there is none, or it is damaged.
    """
    workdir = local_copy(workdir)
    path = epath.Path(workdir) / portable.CONFIG
    if not path.exists():
        raise UsageError(f"{path} does not exist: {workdir} is not the workdir of a training run")
    return read_config_file(path)


def read_config_file(path: str | os.PathLike) -> Experiment:
    """The experiment in a JSON file, such as a workdir's config.json; raises UsageError naming the file."""
    path = epath.Path(path)
    if not storage.is_bucket(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
        raise UsageError(f"{path} is no file")
    try:
        with path.open("rb") as file:
            data = storage.insist(f"cannot read {path}", lambda: file.read(_MOST_BYTES + 1))
    except OSError as error:
        raise storage.lasting(f"cannot read {path}", error) from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path} has more than {_MOST_BYTES >> 20} MiB: it is no config")
    try:
        return portable.resolved(from_json(data), path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
