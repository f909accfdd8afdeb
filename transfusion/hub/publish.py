"""Writes a run as a folder that can be shared, and uploads it to a hub.

The folder holds model.safetensors (the averaged weights if the run keeps an average), config.json, the tokenizer's
file, the codecs with weights in folders of the same form, evaluation.json, pictures, and README.md. Nothing in it is a
pickle or a program, and it names no folder of this machine.
"""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from transfusion import storage
from transfusion.config import Experiment, to_json
from transfusion.errors import UsageError
from transfusion.hub.card import model_card
from transfusion.interop.files import DTYPES
from transfusion.interop.tokenizer import FILES, kept
from transfusion.interop.writing import ArrayForm, new_folder, shards, write_shards
from transfusion.model.names import by_path
from transfusion.remote.hub import api, errors_in_words, local_copy
from transfusion.running.published import FORM
from transfusion.running.restore import read_config, restore_leaves, saved_shapes
from transfusion.workdir import portable
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.resume import as_trained

PICTURES = ("generated.png", "captions.png", "reconstructions.png")  # of a workdir's samples/, as `evaluate` draws them
MOST_PICTURE = 2_000_000  # bytes; larger pictures are left out
SHARD = 5_000_000_000  # bytes of a file with weights
SCORES = "evaluation.json"
_PRIVATE = ("config", "command", "machine")  # fields of evaluation.json that may name folders of a machine


def publish(workdir: str | os.PathLike, folder: str | os.PathLike, licence: str = "", name: str = "") -> pathlib.Path:
    """Writes the newest intact checkpoint of a run as a new folder, and returns its path.

    Args:
      workdir: of a run of any kind.
      folder: must not exist, or be empty.
      licence: of the weights, for the model card.
      name: under which the model card says that it can be loaded; '' for the folder itself.

    Raises:
      UsageError: if the workdir holds no run, or the folder holds files or cannot be written.
    """
    workdir = pathlib.Path(local_copy(workdir))
    experiment, step, forms = _opened(workdir)
    needs = sum(np.prod(form.shape) * form.dtype.itemsize for form in forms.values())
    with new_folder(folder, int(needs)) as target:
        _write_run(workdir, target, experiment)
        evaluation = _scores(workdir, target)
        pictures = _pictures(workdir, target)
        last = os.path.basename(os.path.abspath(folder))
        card = model_card(
            name or last, experiment, step, evaluation, pictures, licence,
            load=f"hf://{name}" if name else f"./{last}", imported=_imported(workdir),
        )  # fmt: skip
        (target / "README.md").write_text(card, "utf-8")
    return pathlib.Path(folder).expanduser().absolute()


def publish_on_hub(workdir: str | os.PathLike, name: str, licence: str = "", private: bool = False) -> str:
    """Uploads a run as the model OWNER/NAME, and returns its address.

    Raises:
      UsageError: if the workdir holds no run, or the token may not write there.
      StorageError: if the hub cannot be reached.
    """
    client = api()
    with tempfile.TemporaryDirectory() as temporary:
        folder = publish(workdir, pathlib.Path(temporary) / name.split("/")[1], licence, name)
        with errors_in_words(f"cannot publish {name}"):
            client.create_repo(name, private=private, exist_ok=True)
            client.upload_folder(repo_id=name, folder_path=folder, commit_message="Published by transfusion")
    return f"{client.endpoint}/{name}"


def _opened(workdir: pathlib.Path) -> tuple[Experiment, int, dict[str, jax.ShapeDtypeStruct]]:
    """The experiment, the step and the forms of the weights of a run."""
    experiment = read_experiment(workdir)
    step, saved = saved_shapes(workdir)
    if (workdir / "checkpoints").exists():
        experiment = as_trained(experiment, read_config(workdir), workdir)
    return experiment, step, by_path(saved[_part(saved)])


def _part(saved: Mapping) -> str:
    return "ema" if jax.tree.leaves(saved.get("ema")) else "params"


def _write_run(workdir: pathlib.Path, target: pathlib.Path, experiment: Experiment) -> None:
    """Writes weights and config, with tokenizer and codecs."""
    for copy, codec in portable.with_weights(experiment).items():
        source = pathlib.Path(codec.path)
        (target / copy).mkdir(parents=True)
        _write_run(source, target / copy, _opened(source)[0])
    if experiment.tokenizer.path:
        source = pathlib.Path(experiment.tokenizer.path)
        shutil.copyfile(source, target / portable.name_of_tokenizer(experiment))
    for path in kept(workdir) if (workdir / FILES).is_dir() else ():  # with the licence of imported weights
        if path.suffix != ".py":
            (target / FILES).mkdir(exist_ok=True)
            shutil.copyfile(path, target / FILES / path.name)
    (target / portable.CONFIG).write_text(to_json(portable.as_published(experiment)), "utf-8")
    _write_weights(workdir, target)


def _write_weights(workdir: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the weights to the bit, one array in memory at a time."""
    step, saved = saved_shapes(workdir)
    part, names = _part(saved), {dtype: name for name, dtype in DTYPES.items()}
    forms: dict[str, ArrayForm] = {}
    for path, form in by_path(saved[part]).items():
        if np.dtype(form.dtype) not in names:
            raise UsageError(f"{workdir}: {path} is of {form.dtype}, which safetensors cannot hold")
        forms[path] = tuple(form.shape), names[np.dtype(form.dtype)]
    layout = shards(forms, SHARD, "model")
    about = dict.fromkeys(layout.values(), {"format": FORM, "step": str(step), "weights": part})
    write_shards(target, forms, _arrays(workdir, step, part, saved[part]), layout, about)


def _arrays(workdir: pathlib.Path, step: int, part: str, saved: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    for path, form in by_path(saved).items():
        wanted: Any = jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=host)
        for name in (*reversed(path.split("/")), part):
            wanted = {name: wanted}
        yield path, np.asarray(jax.tree.leaves(restore_leaves(workdir, step, wanted))[0])


def _scores(workdir: pathlib.Path, target: pathlib.Path) -> dict[str, Any] | None:
    """Writes evaluation.json without what it tells of this machine; returns it, None if there is none."""
    found = storage.read_json(workdir / SCORES)
    if not isinstance(found, dict):
        return None
    found = {name: value for name, value in found.items() if name not in _PRIVATE}
    (target / SCORES).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return found


def _pictures(workdir: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies the pictures that `evaluate` has drawn; returns their names in the folder."""
    folders = (workdir / "samples", workdir / "pictures")
    found = [folder / name for folder in folders for name in PICTURES if (folder / name).is_file()]
    found = [path for path in found if path.stat().st_size <= MOST_PICTURE]
    for path in found:
        (target / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(path, target / "pictures" / path.name)
    return [f"pictures/{path.name}" for path in found]


def _imported(workdir: pathlib.Path) -> bool:
    """Whether the weights are those of others, imported by `transfusion.interop`."""
    return (workdir / "source.json").is_file()
