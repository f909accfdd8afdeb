"""From a released checkpoint folder to a workdir of ours, and back.

An imported workdir holds config.json (if our programs can open the model), the file of its tokenizer (if there is one),
a checkpoint of step 0 with the item 'params', source.json (family, released config, and which file held which key in
which dtype, so that export gives the same files back) and source.safetensors (arrays that the model does not read, if
there are any). The codec of a model of image codes is a workdir inside it, 'codec'.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from transfusion import programs
from transfusion.checkpoint import restore_leaves, saved_shapes
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment, to_json
from transfusion.errors import UsageError
from transfusion.interop.families import FAMILIES, find_family
from transfusion.interop.family import CODEC, Family, Imported
from transfusion.interop.files import Checkpoint, Form, read_json, write_checkpoint, write_file
from transfusion.interop.leaves import check, chunks, fill, lookup, pieces, their_shapes, theirs_from
from transfusion.interop.tokenizer import adopt
from transfusion.interop.zarr import Array
from transfusion.orbax_noise import one_line, silence
from transfusion.seals import write_seal

SOURCE, REST = "source.json", "source.safetensors"
# Names of dtypes in configs and flags -> in safetensors headers.
DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


def import_checkpoint(folder: str | os.PathLike, workdir: str | os.PathLike) -> Family:
    """Writes a workdir from a released checkpoint; no more than a few MiB of the weights are held at any time.

    Raises:
      UsageError: if the folder is not understood (naming the file, key or field), or the workdir is not empty.
    """
    checkpoint = Checkpoint(folder)
    family, imported = find_family(checkpoint)
    rest = check(checkpoint, *imported.whole, imported.ignore)
    _check_computed(checkpoint, imported, rest)
    with _new_folder(workdir) as target:
        if imported.codec is not None:
            _write_part(target / CODEC, checkpoint, imported.codec)
            codec = CodecConfig("autoencoder", os.path.join(workdir, CODEC))
            imported = dataclasses.replace(imported, experiment=dataclasses.replace(imported.experiment, codec=codec))
        if imported.experiment is not None:
            found = adopt(imported.experiment, checkpoint, family, target)
            if found.path:
                found = dataclasses.replace(found, path=str(_absolute(workdir) / pathlib.Path(found.path).name))
            experiment = dataclasses.replace(imported.experiment, tokenizer=found)
            imported = dataclasses.replace(imported, experiment=experiment)
        _write_part(target, checkpoint, imported)
        if rest:
            forms = {key: (checkpoint.shape(key), checkpoint.entry(key).dtype) for key in rest}
            write_file(target / REST, forms, ((key, checkpoint.raw(key)) for key in rest))
        (target / SOURCE).write_text(json.dumps(_source(family, checkpoint), indent=1))
    return family


def _write_part(target: pathlib.Path, checkpoint: Checkpoint, imported: Imported) -> None:
    experiment = imported.experiment
    if experiment is not None:  # there are parameters and no average of them
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


def _source(family: Family, checkpoint: Checkpoint) -> dict[str, Any]:
    files = {name: {"metadata": metadata, "keys": {}} for name, metadata in checkpoint.metadata.items()}
    for key, entry in checkpoint.entries.items():
        files[entry.file]["keys"][key] = entry.dtype
    return {
        "family": family.name,
        "config": checkpoint.config,
        "files": files,
        "index_metadata": checkpoint.index_metadata,
    }


def _absolute(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(path).expanduser().absolute()


@contextlib.contextmanager
def _new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder that takes the name `path` when all went well, and is removed otherwise."""
    target = _absolute(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{path} exists already: give a new folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, target)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_params(
    workdir: pathlib.Path, checkpoint: Checkpoint, imported: Imported, experiment: Experiment | None
) -> None:
    """A sealed checkpoint of step 0 with the item 'params', filled block by block.

    Orbax wants all arrays in memory. So it writes a skeleton, a number for each array, and the arrays are put in its
    place in the format (zarr) in which it reads them.
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

    def open_array(path: tuple, shape: jax.ShapeDtypeStruct) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return Array(root / "0" / "state" / f"params.{name}", shape.shape, chunk[name])

    fill(checkpoint, imported.leaves, jax.tree_util.tree_map_with_path(open_array, shapes))
    write_seal(root, 0)


def export_checkpoint(
    workdir: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes the newest checkpoint of a workdir as a released folder, part by part: of imported weights no more than a
    few MiB are held at any time, see `open_params`.

    Args:
      workdir: imported, or trained from an imported one.
      folder: must not exist, or be empty.
      source: the imported workdir whose source.json tells the form; by default `workdir`.
      dtype: a key of `DTYPE_NAMES`; by default each array has the dtype that it was imported in.
      max_shard_bytes: by default the files are those that were imported.

    Raises:
      UsageError: if there is no source.json, the parameters are of another shape, or the folder is not empty.
    """
    path = pathlib.Path(source or workdir) / SOURCE
    if not path.is_file():
        raise UsageError(f"{path} does not exist: give an imported workdir with --source")
    about = read_json(path)
    try:
        family, files, config = FAMILIES[about["family"]], about["files"], about["config"]
        found = {key: (file, kind) for file in files for key, kind in files[file]["keys"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    imported = family.build(config, found.keys())
    rest = Checkpoint(path.parent) if (path.parent / REST).is_file() else None
    shapes = their_shapes(*imported.whole)
    forms: dict[str, Form] = {}
    for key, (_, kind) in found.items():
        if key not in shapes and (rest is None or key not in rest.entries):
            raise UsageError(f"{path.parent / REST} does not hold {key}")
        forms[key] = (shapes[key], DTYPE_NAMES[dtype] if dtype else kind) if key in shapes else (rest.shape(key), kind)
    names = [name for name in ("torch_dtype", "dtype") if config.get(name)] if dtype else []
    keep = max_shard_bytes is None and not (dtype and len(files) > 1)
    write_checkpoint(
        folder,
        config | dict.fromkeys(names, dtype),
        _arrays(workdir, path.parent, imported, rest),
        forms,
        max_shard_bytes or 5_000_000_000,
        name=_stem(next(iter(files))),
        layout={key: file for key, (file, _) in found.items()} if keep else None,
        metadata={file: files[file]["metadata"] for file in files} if keep else None,
        index_metadata=about.get("index_metadata") if keep else None,
    )


def _stem(file: str) -> str:
    """'model' of 'model.safetensors' and of 'model-00001-of-00002.safetensors'."""
    return file.removesuffix(".safetensors").split("-0")[0]


def _arrays(
    workdir: str | os.PathLike, source: pathlib.Path, imported: Imported, rest: Checkpoint | None
) -> Iterator[tuple[str, np.ndarray]]:
    params = open_params(workdir, imported)
    if imported.codec is not None:  # as it was imported: a run of the model does not train it
        params = {**params, CODEC: open_params(source / CODEC, imported.codec)}
    yield from theirs_from(params, imported.whole[0])
    for key in rest.keys() if rest is not None else ():
        yield key, rest.raw(key)


@dataclasses.dataclass(frozen=True)
class Saved:
    """An array of a checkpoint that `read` reads as a whole, whatever part is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read()[index]


def open_params(workdir: str | os.PathLike, imported: Imported) -> Mapping:
    """The parameters of the newest checkpoint (averaged, where the run keeps an average), as nested dicts of arrays of
    which a part is read when it is asked for, by an index that ends in an Ellipsis. What was imported is read in parts;
    of what was trained since, as many whole arrays are held as are fused in one of the released form.

    Raises:
      UsageError: if there is none, or a parameter has another shape than `imported` says.
    """
    part = "params"
    if (pathlib.Path(workdir) / "config.json").is_file() and programs.read_experiment(workdir).optim.ema:
        part = "ema"
    step, saved = saved_shapes(workdir)
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

    def open_array(keys: tuple, form: Any) -> Array | Saved:
        path = tuple(key.key for key in keys)
        folder = pathlib.Path(workdir).expanduser() / "checkpoints" / str(step) / "state" / ".".join((part, *path))
        return Array.open(folder) or Saved(tuple(form.shape), functools.partial(read, path))

    return jax.tree_util.tree_map_with_path(open_array, saved[part])


def load_params(workdir: str | os.PathLike, imported: Imported) -> Mapping:
    """As `open_params`, in host memory as a whole."""
    return jax.tree.map(lambda array: np.asarray(array[(...,)]), open_params(workdir, imported))
