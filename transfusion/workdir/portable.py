"""Makes a workdir one that can be moved, renamed, and read from any folder.

A run needs the file of its tokenizer and its codecs. They are copied into the workdir when training starts, and
config.json names them relative to itself. Its other paths, of data and of other runs, are absolute, or URLs.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping

from etils import epath

from transfusion import storage
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.remote.hub import local_copy
from transfusion.running import seals
from transfusion.running.published import PATTERN, open_published

# The folders of codecs in the workdir of the model that uses them: of all kinds of segments, and of a single kind.
CODEC, CODECS = "codec", "codecs"
# Kind of tokenizer -> the name of its file in the workdir.
FILE_OF_TOKENIZER = {"huggingface": "tokenizer.json", "sentencepiece": "tokenizer.model"}
CONFIG = "config.json"


def absolute(path: str) -> str:
    """The path of the same place, whatever the current folder is; '' and URLs stay as they are."""
    return path if not path or "://" in path else os.path.abspath(os.path.expanduser(path))


def as_recorded(experiment: Experiment) -> Experiment:
    """The experiment as config.json and the checkpoints hold it."""
    return _with_paths(
        _elsewhere(experiment, absolute),
        name_of_tokenizer(experiment),
        lambda codec, copy: copy if _has_weights(codec) else absolute(codec.path),
    )


def as_published(experiment: Experiment) -> Experiment:
    """The experiment as the config.json of a published run holds it: of paths of this machine it has the last name."""

    def last_name(path: str) -> str:
        return path if "://" in path else os.path.basename(path.rstrip("/"))

    def sources(found: Mapping[str, SourceConfig]) -> dict[str, SourceConfig]:
        return {
            name: dataclasses.replace(one, files=last_name(one.files), captions=last_name(one.captions))
            for name, one in found.items()
        }

    found = _elsewhere(as_recorded(experiment), last_name)
    return dataclasses.replace(
        found,
        data=dataclasses.replace(found.data, sources=sources(found.data.sources)),
        eval=dataclasses.replace(found.eval, sources=sources(found.eval.sources)),
        codec=dataclasses.replace(found.codec, path=_inside(found.codec, CODEC, last_name)),
        codecs={
            kind: dataclasses.replace(codec, path=_inside(codec, f"{CODECS}/{kind}", last_name))
            for kind, codec in found.codecs.items()
        },
    )


def _inside(codec: CodecConfig, copy: str, last_name: Callable[[str], str]) -> str:
    return copy if _has_weights(codec) else last_name(codec.path)


def resolved(experiment: Experiment, folder: str | os.PathLike) -> Experiment:
    """The experiment of a config.json in `folder`, with paths of tokenizer and codecs that can be opened from here.

    A relative path is looked for in the folder and then, as in older workdirs, in the current folder. If nothing is
    there, its last name is looked for in the folder, which may have been moved.
    """

    def find(path: str) -> str:
        if not path or "://" in path:
            return path
        inside = epath.Path(folder)
        for place in (inside / path, epath.Path(path), inside / os.path.basename(path)):
            if place.exists():
                return os.fspath(place)
        return path

    return _with_paths(experiment, find(experiment.tokenizer.path), lambda codec, copy: find(codec.path))


def from_command_line(experiment: Experiment, workdir: str | os.PathLike) -> Experiment:
    """The experiment of a command line; where its tokenizer or a codec is gone, it names the copy in the workdir."""

    def find(path: str, copy: str) -> str:
        kept = epath.Path(workdir) / copy
        gone = path and "://" not in path and not os.path.exists(path)
        return os.fspath(kept) if gone and kept.exists() else path

    tokenizer = find(experiment.tokenizer.path, name_of_tokenizer(experiment))
    return _with_paths(experiment, tokenizer, lambda codec, copy: find(codec.path, copy))


def bring_in(experiment: Experiment, workdir: str | os.PathLike) -> None:
    """Copies the tokenizer's file and the codecs into the workdir, unless they are there. Only one process calls it.

    Raises:
      StorageError, UsageError: if they cannot be read or written.
    """
    workdir = epath.Path(workdir)
    try:
        if experiment.tokenizer.path:
            _copy(epath.Path(experiment.tokenizer.path), workdir / name_of_tokenizer(experiment))
        for copy, codec in with_weights(experiment).items():
            _copy_codec(codec.path, workdir / copy)
    except OSError as error:
        raise storage.lasting(f"cannot copy the tokenizer and the codecs into {workdir}", error) from error


def differing_codecs(
    trained: Experiment, experiment: Experiment, workdir: str | os.PathLike
) -> list[tuple[str, str, str]]:
    """The codecs of an experiment that have other weights than the run was trained with: (field, old, new path).

    The run's codec is the copy in its workdir or, in older workdirs, the codec at the path of its config.
    """
    before = with_weights(trained)
    return [
        (f"{copy.replace('/', '.')}.path", copy, codec.path)
        for copy, codec in with_weights(experiment).items()
        if copy in before and _differs(before[copy].path, codec.path, epath.Path(workdir), copy)
    ]


def _differs(trained: str, path: str, workdir: epath.Path, copy: str) -> bool:
    kept = workdir / copy
    if _same(path, kept):
        return False
    if not (kept / CONFIG).exists():
        return trained != copy and absolute(trained) != absolute(path)
    return _weights(path)[1] != _weights(kept)[1]


def _codecs(experiment: Experiment) -> dict[str, CodecConfig]:
    """The codecs of an experiment by the folders of their copies in the workdir."""
    return {CODEC: experiment.codec} | {f"{CODECS}/{kind}": codec for kind, codec in experiment.codecs.items()}


def with_weights(experiment: Experiment) -> dict[str, CodecConfig]:
    """The codecs that have weights, by the folders of their copies in the workdir."""
    return {copy: codec for copy, codec in _codecs(experiment).items() if _has_weights(codec)}


def _has_weights(codec: CodecConfig) -> bool:
    return codec.kind == "autoencoder" and bool(codec.path)


def name_of_tokenizer(experiment: Experiment) -> str:
    """The name of the tokenizer's file in the workdir; '' if it has none."""
    config = experiment.tokenizer
    return FILE_OF_TOKENIZER.get(config.kind, os.path.basename(config.path)) if config.path else ""


def _with_paths(experiment: Experiment, tokenizer: str, path_of: Callable[[CodecConfig, str], str]) -> Experiment:
    """Replaces the paths of the tokenizer and of the codecs: `path_of` gets a codec and the folder of its copy."""
    found = {copy: dataclasses.replace(c, path=path_of(c, copy)) for copy, c in _codecs(experiment).items()}
    return dataclasses.replace(
        experiment,
        tokenizer=dataclasses.replace(experiment.tokenizer, path=tokenizer),
        codec=found[CODEC],
        codecs={kind: found[f"{CODECS}/{kind}"] for kind in experiment.codecs},
    )


def _elsewhere(experiment: Experiment, change: Callable[[str], str]) -> Experiment:
    """Changes the paths of everything that is not kept in the workdir: data, and the run to start from."""

    def source(config: SourceConfig) -> SourceConfig:
        return dataclasses.replace(config, path=change(config.path), latents=change(config.latents))

    data, held_out = experiment.data, experiment.eval
    sources, others = ({n: source(s) for n, s in part.sources.items()} for part in (data, held_out))
    runs = {n: dataclasses.replace(run, path=change(run.path)) for n, run in experiment.init.others.items()}
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(data, data_dir=change(data.data_dir), sources=sources),
        eval=dataclasses.replace(held_out, sources=others),
        init=dataclasses.replace(experiment.init, path=change(experiment.init.path), others=runs),
    )


# --- copies -----------------------------------------------------------------------------------------------------------


def _same(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    a, b = os.fspath(a), os.fspath(b)
    return a == b or ("://" not in a + b and os.path.realpath(a) == os.path.realpath(b))


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Replaces a file as a whole, unless it is the same already."""
    if _same(source, target):
        return
    data = storage.insist(f"cannot read {source}", source.read_bytes)
    if target.exists() and storage.insist(f"cannot read {target}", target.read_bytes) == data:
        return
    temporary = target.with_name(f"{target.name}.tmp")

    def write() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(target)

    storage.insist(f"cannot write {target}", write)


def _copy_codec(source: str, target: epath.Path) -> None:
    """Copies the weights of a codec's run, and last its config.json: with that the copy is whole.

    They are the newest intact checkpoint, or the files of a published run.
    """
    source = local_copy(source)
    if _same(source, target):
        return
    step, files = _weights(source)
    if (target / CONFIG).exists():
        if _weights(target)[1] == files:
            return
        (target / CONFIG).unlink()
    theirs, ours = seals.folder_of(source), target / seals.folder_of(target).name
    if ours.exists():
        ours.rmtree()
    if step is None:
        for name in files:
            _copy(epath.Path(source) / name, target / name)
    else:
        for name in files:
            _copy(theirs / str(step) / name, ours / str(step) / name)
        _copy(seals.seal_path(theirs, step), seals.seal_path(ours, step))
    _copy(epath.Path(source) / CONFIG, target / CONFIG)


def _weights(workdir: str | os.PathLike) -> tuple[int | None, dict]:
    """(step, {file: [size, digest]}) of a run's newest intact checkpoint; of a published run the step is None."""
    workdir = local_copy(workdir)
    if open_published(workdir) is not None:
        found = {path.name: path.read_bytes() for path in sorted(epath.Path(workdir).glob(PATTERN))}
        return None, {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in found.items()}
    root = seals.folder_of(workdir)
    step, _ = seals.newest_intact(root)
    if step is None:
        raise UsageError(f"codec.path: {workdir} has no intact checkpoint")
    return step, json.loads(seals.seal_path(root, step).read_text())["files"]
