"""Opens a TFDS dataset on disk, by name, config and version or by its folder, and a split of it.

The files may be a stranger's: TFDS's errors about damaged files become one line, no module that the files name is
imported, and no path leads out of the dataset's folder.
"""

import contextlib
import fnmatch
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from transfusion.data import builders
from transfusion.data.config import SourceConfig
from transfusion.data.faults import error_line
from transfusion.errors import UsageError, nearest
from transfusion.storage import StorageError, may_pass

_ABOUT, _FEATURES = "dataset_info.json", "features.json"


def open_builder(config: SourceConfig, where: str) -> tfds.core.DatasetBuilder:
    """The prepared dataset that `config` names below the folder `where`, or whose folder is `where`.

    Raises:
      UsageError: if it does not exist, not in this version, or its files are damaged.
    """
    if not config.name:
        if not Path(where, _ABOUT).is_file():
            raise UsageError(f"no prepared TFDS dataset in {where!r}: it has no {_ABOUT}; set name or path")
        return _from_folder(where)
    name, colon, version = config.name.partition(":")
    builder, advice = _named(name, where)
    folder = Path(builder.data_dir).parent
    versions = _versions(folder)
    if colon:
        fitting = [v for v in versions if fnmatch.fnmatchcase(v, version)]
        if not fitting:
            there = f"there are {', '.join(versions)}" if versions else f"there is none{advice}"
            raise UsageError(f"dataset {name!r} has no version {version!r} in {where!r}: {there}")
        return _from_folder(folder / fitting[-1])
    if not Path(builder.data_dir, _ABOUT).is_file():
        if versions:
            advice += f", or name one of the versions that are there, such as '{name}:{versions[-1]}'"
        raise UsageError(f"dataset {config.name!r} is not prepared in {where!r}{advice}")
    return builder


def open_split(builder: tfds.core.DatasetBuilder, split: str, decoders: Any) -> Sequence:
    """The records of a split, or of parts and sums of splits: 'train[:90%]', 'train[10:20]', 'train+test', 'all'.

    Raises:
      UsageError: if the split does not exist or is empty, or its files are missing or not ArrayRecord.
    """
    name, known = builder.info.full_name, list(builder.info.splits)
    for part in split.split("+"):
        base = part.partition("[")[0].strip()
        if base not in (*known, "all"):
            raise UsageError(f"dataset {name} has no split {base!r}{nearest(base, known)}: {', '.join(known)}")
    forms = "splits are given as in 'train', 'train[:90%]', 'train[10:20]', 'train+test'"
    with _in_one_line(f"dataset {name} has no split {split!r} ({forms})"):
        files = [Path(instruction.filename) for instruction in builder.info.splits[split].file_instructions]
        empty = not files or builder.info.splits[split].num_examples < 1
    if empty:
        raise UsageError(f"the split {split!r} of dataset {name} holds no records")
    for file in files:
        if file.parent != Path(builder.data_dir):
            raise UsageError(f"dataset {name} names a file outside of its folder: {file}")
    try:
        with _in_one_line(f"cannot read the split {split!r} of {builder.data_dir}"):
            data = builder.as_data_source(split=split, decoders=decoders)
            len(data)
    except UsageError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        raise UsageError(
            f"{name}/{split} is stored as {builder.info.file_format}, which gives no random access: "
            "prepare it again with file_format='array_record'"
        ) from error
    if missing := next((file for file in files if not file.is_file()), None):
        raise UsageError(f"{missing} is missing: prepare the dataset again")
    return data


def _named(full_name: str, where: str) -> tuple[tfds.core.DatasetBuilder, str]:
    """The builder of 'name' or 'name/config', and the advice that an error gives if the dataset is missing."""
    name, _, variant = full_name.partition("/")
    advice = ": prepare it with file_format='array_record'"
    if name in builders.BUILDERS:
        advice = f": run `python -m transfusion.prepare --data_dir {where} {full_name}`"
        builder_class, variant = builders.resolve(full_name)
        name = builder_class.name
    known = [path.name for path in Path(where).iterdir() if path.is_dir()] if Path(where).is_dir() else []
    if name not in known:
        if full_name.partition("/")[0] not in builders.BUILDERS:
            advice = nearest(name, {*known, *builders.BUILDERS}) + advice
        raise UsageError(f"no dataset {full_name!r} in {where!r}{advice}")
    for features in Path(where, name).rglob(_FEATURES):
        _check_classes(features)
    with _in_one_line(f"cannot open dataset {full_name!r} in {where!r}"):
        return tfds.builder(f"{name}/{variant}" if variant else name, data_dir=where), advice


def _from_folder(folder: str | os.PathLike) -> tfds.core.DatasetBuilder:
    _check_classes(Path(folder, _FEATURES))
    with _in_one_line(f"cannot open the dataset in {str(folder)!r}"):
        return tfds.builder_from_directory(folder)


def _versions(folder: Path) -> list[str]:
    """The versions of a dataset on disk, the newest last."""
    found = [path.name for path in folder.iterdir() if (path / _ABOUT).is_file()] if folder.is_dir() else []
    return sorted(filter(tfds.core.Version.is_valid, found), key=tfds.core.Version)


def _check_classes(features: Path) -> None:
    """Refuses a features.json that names classes outside TFDS, because TFDS would import their modules."""
    if not features.is_file():
        return
    with _in_one_line(f"cannot read {features}"):
        names = list(_class_names(json.loads(features.read_text(encoding="utf-8"))))
    for name in names:
        module = name.rpartition(".")[0]
        if not module.startswith("tensorflow_datasets.core.") and module not in sys.modules:
            raise UsageError(f"{features} names the class {name!r}: only features of TFDS itself are read")


def _class_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("pythonClassName", "type", "proto_cls") and isinstance(inner, str):
                yield inner
            yield from _class_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_names(inner)


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turns whatever TFDS raises about files and names into an error of one line that begins with `what`."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # TFDS, protobuf and ArrayRecord raise many classes, AssertionError among them
        kind = StorageError if isinstance(error, OSError) and may_pass(error) else UsageError
        raise kind(f"{what}: {error_line(error)}") from error
