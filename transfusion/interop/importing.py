"""Imports a released checkpoint folder into a workdir; `export` is the way back.

An imported workdir holds:

- config.json, if our programs can open the model. Its paths are relative, so that the workdir can be moved.
- A checkpoint of step 0 with the item 'params'.
- 'tokenizer', a folder with the tokenizer's files as they were.
- source.json: the family, the released config, and which file held which key in which dtype, so that export gives the
  same files back.
- source.safetensors: arrays that the model does not read, if there are any.
- 'codec', a workdir of its own, if the model draws image codes.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from transfusion.codecs import CodecConfig
from transfusion.config import Experiment, to_json
from transfusion.errors import UsageError
from transfusion.interop.family import Family, Imported
from transfusion.interop.files import Checkpoint
from transfusion.interop.known import find_family
from transfusion.interop.leaves import check_keys, chunks, fill, lookup, pieces
from transfusion.interop.tokenizer import adopt, has_text, keep
from transfusion.interop.writing import new_folder, write_file
from transfusion.interop.zarr import DiskArray
from transfusion.running.orbax_noise import silence
from transfusion.running.restore import restore_leaves, saved_shapes
from transfusion.running.seals import write_seal
from transfusion.sequence.text import TokenizerConfig
from transfusion.workdir.portable import CODEC

SOURCE, REST = "source.json", "source.safetensors"


def import_checkpoint(
    folder: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    text_as_bytes: bool = False,
    ignore_fields: Sequence[str] = (),
    follow_links: bool = False,
) -> Family:
    """Writes a workdir from a released checkpoint. No more than a few MiB of the weights are in memory at any time.

    Args:
      folder: config.json, *.safetensors and the files of the tokenizer.
      workdir: must not exist, or be empty.
      text_as_bytes: import without the tokenizer. Text is then bytes, whose ids mean nothing to the weights.
      ignore_fields: fields of config.json, in any of its tables, that are passed over with a warning.
      follow_links: whether links in the folder may lead out of it.

    Raises:
      UsageError: if the folder is not understood (naming the file, key or field), has no tokenizer for a model of text,
        or the workdir is not empty.
    """
    checkpoint = Checkpoint(folder, follow_links)
    family, imported = find_family(checkpoint, tuple(ignore_fields))
    for name in ignore_fields:
        logging.warning("config.json: %s is passed over; if it changes the model, another model is imported", name)
    rest = check_keys(checkpoint, *imported.whole, imported.ignore)
    _check_computed(checkpoint, imported, rest)
    with new_folder(workdir, _bytes_of(checkpoint, imported, rest)) as target:
        if imported.codec is not None:
            _write_part(target / CODEC, checkpoint, imported.codec)
            codec = CodecConfig("autoencoder", CODEC)
            imported = dataclasses.replace(imported, experiment=dataclasses.replace(imported.experiment, codec=codec))
        keep(checkpoint, target)
        if has_text(imported.experiment):
            found = TokenizerConfig(fixed=True)
            if not text_as_bytes:
                found = adopt(imported.experiment, checkpoint, family, target)
            experiment = dataclasses.replace(imported.experiment, tokenizer=found)
            imported = dataclasses.replace(imported, experiment=experiment)
        _write_part(target, checkpoint, imported)
        if rest:
            forms = {key: (checkpoint.shape(key), checkpoint.entry(key).dtype) for key in rest}
            write_file(target / REST, forms, ((key, checkpoint.raw(key)) for key in rest))
        (target / SOURCE).write_text(json.dumps(_source(family, checkpoint, ignore_fields), indent=1))
    return family


def _bytes_of(checkpoint: Checkpoint, imported: Imported, rest: list[str]) -> int:
    """The bytes that the workdir's arrays take: our parameters in float32, and the rest as it is."""
    shapes = jax.tree.leaves(dict(imported.whole[1]))
    return 4 * sum(math.prod(s.shape) for s in shapes) + sum(checkpoint.entry(key).nbytes for key in rest)


def _write_part(target: pathlib.Path, checkpoint: Checkpoint, imported: Imported) -> None:
    experiment = imported.experiment
    if experiment is not None:  # a released checkpoint has parameters and no average of them
        experiment = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, ema=0.0))
    write_params(target, checkpoint, imported, experiment)
    if experiment is not None:
        (target / "config.json").write_text(to_json(experiment))


def _check_computed(checkpoint: Checkpoint, imported: Imported, rest: list[str]) -> None:
    for key, compute in imported.computed.items():
        if key in rest:
            tolerance = 1e-5 if checkpoint.entry(key).dtype in ("F32", "F64") else 1e-2
            value, own = checkpoint.read(key), compute()
            if value.shape != own.shape or not np.allclose(value, own, rtol=tolerance, atol=tolerance):
                raise UsageError(f"{checkpoint.folder}: key {key} holds other values than those that are computed here")


def _source(family: Family, checkpoint: Checkpoint, ignore_fields: Sequence[str]) -> dict[str, Any]:
    files = {name: {"metadata": metadata, "keys": {}} for name, metadata in checkpoint.metadata.items()}
    for key, entry in checkpoint.entries.items():
        files[entry.file]["keys"][key] = entry.dtype
    return {
        "family": family.name,
        "config": checkpoint.config,
        "ignore_fields": list(ignore_fields),
        "files": files,
        "index_metadata": checkpoint.index_metadata,
    }


def write_params(
    workdir: pathlib.Path, checkpoint: Checkpoint, imported: Imported, experiment: Experiment | None
) -> None:
    """Writes a sealed checkpoint of step 0 with the item 'params', block by block.

    Orbax wants all arrays in memory. So it writes only a skeleton, one number for each array, and the arrays then
    replace these numbers in the format in which Orbax reads them (zarr).
    """
    silence()
    root, shapes = workdir / "checkpoints", imported.template.shapes
    skeleton = {"params": jax.tree.map(lambda s: np.zeros((1,) * len(s.shape), np.float32), shapes)}
    root.mkdir(parents=True)
    items = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=False)}
    about = json.loads(to_json(experiment)) if experiment is not None else {}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler("data", "config", **items)) as writer:
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(skeleton), data=ocp.args.JsonSave({}), config=ocp.args.JsonSave(about)
        )
        writer.save(root / "0", args=arguments)
    chunk = chunks(imported.leaves, shapes)

    def open_array(path: tuple, shape: jax.ShapeDtypeStruct) -> DiskArray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return DiskArray(root / "0" / "state" / f"params.{name}", shape.shape, chunk[name])

    fill(checkpoint, imported.leaves, jax.tree_util.tree_map_with_path(open_array, shapes))
    write_seal(root, 0)


@dataclasses.dataclass(frozen=True)
class Saved:
    """An array of a checkpoint. `read` reads all of it, whichever part is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read()[index]


def averaged(saved: Mapping) -> str:
    """The name of the parameters that are exported: 'ema' if the run keeps an average of them, else 'params'."""
    return "ema" if jax.tree.leaves(saved.get("ema")) else "params"


def open_params(workdir: str | os.PathLike, imported: Imported) -> Mapping:
    """The parameters of the newest checkpoint as nested dicts of arrays that are read when a part of them is asked for.

    The parameters are the averaged ones if the run keeps an average. The index of a part ends in an Ellipsis. Imported
    arrays are read in parts. Arrays that were trained since are read as a whole; as many of them are kept in memory as
    are fused into one array of the released form.

    Raises:
      UsageError: if there is no checkpoint, or a parameter has another shape than `imported` says.
    """
    step, saved = saved_shapes(workdir)
    part = averaged(saved)
    if not jax.tree.leaves(saved.get(part)):
        raise UsageError(f"{workdir}: the checkpoint of step {step} has no {part!r}")
    for leaf in imported.leaves:
        want, name = lookup(imported.template.shapes, leaf.ours).shape, "/".join(map(str, leaf.ours))
        try:
            found = tuple(lookup(saved[part], leaf.ours).shape)
        except (KeyError, TypeError, AttributeError):
            raise UsageError(f"{workdir}: the checkpoint has no {name}, which the released form asks for") from None
        if found != want:
            raise UsageError(f"{workdir}: {name} is {list(found)}, and the released form asks for {list(want)}")
    together: dict[str, set] = {}
    for piece in pieces(imported.leaves):
        together.setdefault(piece.key, set()).add(piece.leaf.ours)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

    @functools.lru_cache(max(map(len, together.values())))
    def read(path: tuple[str, ...]) -> np.ndarray:
        form = lookup(saved[part], path)
        wanted = jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=host)
        for name in (*reversed(path), part):
            wanted = {name: wanted}
        return np.asarray(lookup(restore_leaves(workdir, step, wanted)[part], path))

    def open_array(keys: tuple, form: Any) -> DiskArray | Saved:
        path = tuple(key.key for key in keys)
        folder = pathlib.Path(workdir).expanduser() / "checkpoints" / str(step) / "state" / ".".join((part, *path))
        return DiskArray.open(folder) or Saved(tuple(form.shape), functools.partial(read, path))

    return jax.tree_util.tree_map_with_path(open_array, saved[part])


def load_params(workdir: str | os.PathLike, imported: Imported) -> Mapping:
    """The parameters of `open_params`, all read into host memory."""
    return jax.tree.map(lambda array: np.asarray(array[(...,)]), open_params(workdir, imported))
