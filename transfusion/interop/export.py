"""Exports a workdir in the form of a released checkpoint: every parameter is written, or the export is refused.

A run that was trained from imported weights may have parameters that the released form has no name for (an image stream
beside a text model), or compute something else with the same arrays (another rotary base). Neither is lost in silence.
"""

import dataclasses
import fnmatch
import operator
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Imported
from transfusion.interop.fields import ignoring
from transfusion.interop.files import DTYPES, SUFFIX, Checkpoint
from transfusion.interop.importing import REST, SOURCE, averaged, open_params
from transfusion.interop.known import FAMILIES
from transfusion.interop.leaves import lookup, their_shapes, theirs_from
from transfusion.interop.opening import Folder, check_name
from transfusion.interop.tokenizer import kept
from transfusion.interop.writing import ArrayForm, write_checkpoint
from transfusion.model.names import by_path, nearest_path
from transfusion.running.restore import saved_shapes
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.portable import CODEC

# Names of dtypes in configs and flags -> their names in safetensors headers.
DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
# Fields of the trunk that may differ between a run and its imported model. They say how the model is computed and
# trained, or what else is in the trunk, and do not change what the released weights mean.
_MODEL_MAY = {"dtype", "remat", "scan", "attention", "streams", "towers", "stages", "untied", "causal", "cross"}
_MODEL_MAY |= {"rope_axes", "rope_interleaved", "released"}
_TRUNK_MEANS = ("released.ffn_norm_epsilon", "released.rope_scaling")
# Fields of a stream and of an autoencoder that do change it.
_STREAM_MEANS = ("embed", "head", "attention", "time", "table", "head_after", "patch", "channels")
_STREAM_MEANS += ("released.time", "released.centred", "released.x_first")
_AUTOENCODER_MEANS = (
    "form", "frames", "time_down", "stem", "encoder_attention", "decoder_attention", "attention_heads", "code_norms",
    "middle_attention", "norm_groups", "scale", "shift", "patch", "patch_frames", "straight",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an imported workdir knows of the released folder that it comes from.

    Attributes:
      folder: the workdir.
      imported: how the released form became ours.
      config: the released config.json.
      files: for each file with weights its metadata and the dtype of each key.
      rest: the arrays that the model does not read; None if there are none.
      index_metadata: the metadata of the released index; None if there was no index.
    """

    folder: pathlib.Path
    imported: Imported
    config: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    rest: Checkpoint | None
    index_metadata: Mapping[str, Any] | None

    @property
    def keys(self) -> dict[str, tuple[str, str]]:
        """The file and the dtype of every key."""
        return {key: (file, kind) for file, about in self.files.items() for key, kind in about["keys"].items()}


def read_origin(workdir: str | os.PathLike) -> Origin:
    """Reads what an imported workdir kept of the released folder.

    Raises:
      UsageError: if the workdir was not imported, or source.json is damaged.
    """
    folder = pathlib.Path(workdir)
    if not (folder / SOURCE).exists():
        raise UsageError(f"{folder / SOURCE} does not exist: give an imported workdir with --source")
    about, where = Folder(folder, follow_links=True).read_json(SOURCE), str(folder / SOURCE)
    try:
        family, files, config = FAMILIES[about["family"]], about["files"], about["config"]
        keys = [key for file in files for key, kind in files[file]["keys"].items() if DTYPES[kind]]
        dicts = [config, about.get("index_metadata") or {}, *(files[file]["metadata"] for file in files)]
        if not keys or not all(isinstance(table, dict) for table in dicts):
            raise TypeError("no table of files")
        ignored = tuple(map(str, about.get("ignore_fields", ())))
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{where} is damaged: {type(error).__name__} {error}") from error
    for file in files:
        check_name(file, SUFFIX, where)
    imported = family.build(ignoring(config, ignored), keys)
    rest = Checkpoint(folder, follow_links=True) if (folder / REST).is_file() else None
    return Origin(folder, imported, config, files, rest, about.get("index_metadata"))


def export_checkpoint(
    workdir: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    drop: Sequence[str] = (),
) -> list[str]:
    """Writes the newest checkpoint of a workdir as a released folder, with the files of its tokenizer.

    No more than a few MiB of imported weights are in memory at any time; see `open_params`.

    Args:
      workdir: imported, or trained from an imported one.
      folder: must not exist, or be empty.
      source: the imported workdir whose source.json describes the form; by default `workdir`.
      dtype: a key of `DTYPE_NAMES`; by default each array has the dtype with which it was imported.
      max_shard_bytes: the size of the files; by default the weights are split as they were imported.
      drop: paths or shell patterns of parameters that the form has no place for, which are left out.

    Returns:
      The paths of the parameters that were left out.

    Raises:
      UsageError: if there is no source.json, the parameters are of another shape, the form has no place for one of them
        that `drop` does not name, the run computes something else with them, or the folder is not empty.
    """
    about = read_origin(source or workdir)
    found, files, config = about.keys, about.files, about.config
    shapes = their_shapes(*about.imported.whole)
    forms: dict[str, ArrayForm] = {}
    for key, (_, kind) in found.items():
        if key not in shapes and (about.rest is None or key not in about.rest.entries):
            raise UsageError(f"{about.folder / REST} does not hold {key}")
        wanted = DTYPE_NAMES[dtype] if dtype else kind
        forms[key] = (shapes[key], wanted) if key in shapes else (about.rest.shape(key), kind)
    _check_meaning(workdir, about)
    params = open_params(workdir, about.imported)
    dropped = _without_place(workdir, about.imported, params, drop)
    names = [name for name in ("torch_dtype", "dtype") if config.get(name)] if dtype else []
    keep = max_shard_bytes is None and not (dtype and len(files) > 1)
    write_checkpoint(
        folder,
        config | dict.fromkeys(names, dtype),
        _arrays(params, about),
        forms,
        max_shard_bytes or 5_000_000_000,
        name=next(iter(files)).removesuffix(SUFFIX).split("-0")[0],  # of 'model-00001-of-00002', 'model'
        layout={key: file for key, (file, _) in found.items()} if keep else None,
        metadata={file: files[file]["metadata"] for file in files} if keep else None,
        index_metadata=about.index_metadata if keep else None,
        beside=kept(about.folder) if _same_tokenizer(workdir, about.folder) else (),
    )
    return dropped


def _arrays(params: Mapping, about: Origin) -> Iterator[tuple[str, np.ndarray]]:
    if about.imported.codec is not None:  # the codec goes out as it was imported: runs of the model do not train it
        params = {**params, CODEC: open_params(about.folder / CODEC, about.imported.codec)}
    yield from theirs_from(params, about.imported.whole[0])
    for key in about.rest.keys() if about.rest is not None else ():
        if key in about.keys:
            yield key, about.rest.raw(key)


def _without_place(workdir: str | os.PathLike, imported: Imported, params: Mapping, drop: Sequence[str]) -> list[str]:
    """The parameters for which the released form has no place. `drop` must name all of them.

    Raises:
      UsageError: if `drop` does not name one of them, or has a pattern that names none of them.
    """
    step, saved = saved_shapes(workdir)
    every = by_path({str(name): node for name, node in _named(saved[averaged(saved)]).items()})
    placed = {"/".join(map(str, leaf.ours)) for leaf in imported.leaves}
    missing = [path for path in every if path not in placed] + _lost_layers(imported, params)
    for pattern in drop:
        if not any(_matches(pattern, path) for path in missing):
            why = (
                "the released form has a place for it" if any(_matches(pattern, p) for p in placed) else "no parameter"
            )
            raise UsageError(f"--drop={pattern}: {why}{nearest_path(pattern, missing)}")
    left = [path for path in missing if not any(_matches(pattern, path) for pattern in drop)]
    if left:
        listed = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        flags = " ".join(f"--drop '{pattern}'" for pattern in _patterns(left, placed))
        raise UsageError(
            f"{workdir}: the released form has no place for {len(left)} of the {len(every)} parameters of step {step}: "
            f"{listed}; to leave them out, give {flags}"
        )
    return missing


def _patterns(paths: Sequence[str], placed: Collection[str]) -> list[str]:
    """The shortest shell patterns that name all `paths` and nothing that has a place."""
    above = {path.rsplit("/", up)[0] for path in placed for up in range(path.count("/") + 1)}
    found = {}
    for path in paths:
        names = path.split("/")
        heads = ["/".join(names[: i + 1]) for i in range(len(names))]
        head = next((head for head in heads if head not in above), path)
        found[head if head == path else f"{head}/*"] = None
    return list(found)


def _named(node: Mapping) -> dict[str, Any]:
    """The same tree with all names as strings, since numbers may have become strings on disk."""
    return {str(name): _named(child) if isinstance(child, Mapping) else child for name, child in node.items()}


def _matches(pattern: str, path: str) -> bool:
    """Whether a shell pattern names a path, or one above it."""
    ends = [i for i, letter in enumerate(path) if letter == "/"] + [len(path)]
    return any(fnmatch.fnmatchcase(path[:end], pattern.rstrip("/")) for end in ends)


def _lost_layers(imported: Imported, params: Mapping) -> list[str]:
    """Arrays with a layer that has no place in the released form (`Leaf.theirs` is None) and is no longer zero."""
    layers: dict[tuple, set[int]] = {}
    for leaf in imported.leaves:
        if not isinstance(leaf.theirs, str):
            empty = {i for i, key in enumerate(leaf.theirs) if key is None}
            layers[leaf.ours] = layers[leaf.ours] & empty if leaf.ours in layers else empty
    return [
        "/".join(map(str, path))
        for path, empty in layers.items()
        if any(np.any(np.asarray(lookup(params, path)[(i, ...)])) for i in sorted(empty))
    ]


def _experiment(workdir: str | os.PathLike) -> Experiment | None:
    """The experiment of a workdir; None for a part of a model, such as a vision tower, which is no run."""
    return read_experiment(workdir) if (pathlib.Path(workdir) / "config.json").is_file() else None


def _check_meaning(workdir: str | os.PathLike, about: Origin) -> None:
    """Refuses a run that computes something else with the same arrays than the released config says."""
    run, form = _experiment(workdir), about.imported.experiment
    if run is None or form is None:
        return
    trunks = [("model", run.model, form.model)]
    trunks += [
        (f"model.stages.{name}.trunk", run.model.stages[name].trunk, stage.trunk)
        for name, stage in form.model.stages.items()
        if name in run.model.stages
    ]
    means = [field.name for field in dataclasses.fields(form.model) if field.name not in _MODEL_MAY]
    means += _TRUNK_MEANS
    pairs = [(f"{where}.{name}", ours, theirs, name) for where, ours, theirs in trunks for name in means]
    for name, stream in form.streams.items():
        if name in run.streams:
            pairs += [(f"streams.{name}.{field}", run.streams[name], stream, field) for field in _STREAM_MEANS]
    if form.task == "autoencoder":
        pairs = [(f"autoencoder.{field}", run.autoencoder, form.autoencoder, field) for field in _AUTOENCODER_MEANS]
    for name, ours, theirs, field in pairs:
        value = operator.attrgetter(field)
        if value(ours) != value(theirs):
            raise UsageError(
                f"{workdir}: {name} is {value(ours)!r}, and the released config.json says "
                f"{value(theirs)!r}: its form cannot express this run"
            )


def _same_tokenizer(workdir: str | os.PathLike, source: pathlib.Path) -> bool:
    """Whether the run's tokenizer is the imported one, so that its files are exported with the weights."""
    if pathlib.Path(workdir).absolute() == source.absolute():
        return True
    run, form = _experiment(workdir), _experiment(source)
    if run is None or form is None or run.tokenizer.sha256 == form.tokenizer.sha256:
        return True
    logging.warning("%s has another tokenizer than %s: no tokenizer is exported", workdir, source)
    return False
