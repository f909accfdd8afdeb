"""What finished runs of a store have measured, in a small file each, so that a verdict needs no weights.

A store is large and is not given away: weights, optimizers, drawings. A record (RECORDS/DIGEST.zip) holds the few files
that claims and tables read. Where a store lacks a run, its record takes the run's place, unless a run that is still to
be trained begins with its weights.
"""

import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from transfusion import storage
from transfusion.running import seals
from transfusion.sweep.members import Member
from transfusion.sweep.process import ROW, is_finished

FILES = ("config.json", "evaluation.json", "metrics.jsonl", ROW)
LARGEST = 2**24  # bytes of one file
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in a record, so that the same results are the same bytes


def keep(member: Member, folder: str | os.PathLike) -> None:
    """Writes the record of a run of a store, if it is finished and its record does not say the same already."""
    if not is_finished(member):
        return
    path, found = _path(member, folder), {}
    for name in FILES:
        if (member.workdir / name).is_file():
            found[name] = (member.workdir / name).read_bytes()
            if name in ("config.json", "evaluation.json"):
                found[name] = json.dumps(_without_places(json.loads(found[name])), indent=1).encode()
    if path.exists() and _read(path) == found:
        return
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as record:
        for name, content in found.items():
            record.writestr(zipfile.ZipInfo(name, DATE), content, zipfile.ZIP_DEFLATED)
    storage.make_folder(path.parent)
    storage.write_whole(path, packed.getvalue())


def restore(members: Sequence[Member], folder: str | os.PathLike) -> None:
    """Lets records take the place of runs that the store lacks, as far as no unfinished run begins with one.

    A run that only a record stands for, and whose weights are needed, counts as not trained: it is trained again.
    """
    for member in members:
        if not is_finished(member):
            _unpack(member, folder)
    by_name, wanted = {member.name: member for member in members}, set()

    def want(names: Sequence[str]) -> None:
        for name in set(names) - wanted:
            wanted.add(name)
            if is_finished(by_name[name]) and _without_weights(by_name[name]):
                _forget(by_name[name])
            if not is_finished(by_name[name]):
                want(by_name[name].needs)

    want([name for member in members if not is_finished(member) for name in member.needs])


def _path(member: Member, folder: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(folder) / f"{member.digest}.zip"


def _read(path: pathlib.Path) -> dict[str, bytes]:
    """The files of a record; none of a damaged one, which is said."""
    try:
        with zipfile.ZipFile(path) as record:
            sizes = {info.filename: info.file_size for info in record.infolist() if info.filename in FILES}
            if any(size > LARGEST for size in sizes.values()):
                raise ValueError(f"it has a file of more than {LARGEST} bytes")
            return {name: record.read(name) for name in sizes}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError) as error:
        logging.warning("%s is damaged (%s): its run counts as not recorded", path, storage.one_line(error))
        return {}


def _unpack(member: Member, folder: str | os.PathLike) -> None:
    """Puts the record of a run, if there is one that tells all that is measured, into the run's folder."""
    path = _path(member, folder)
    begun = member.workdir.is_dir() and any(member.workdir.iterdir())  # perhaps by a program that is at work on it
    if begun or not path.is_file():
        return
    for name, content in _read(path).items():
        storage.make_folder(member.workdir)
        storage.write_whole(member.workdir / name, content)
    if not is_finished(member):  # of a version that measured less
        _forget(member)


def _without_weights(member: Member) -> bool:
    return not seals.finished_steps(seals.folder_of(member.workdir))


def _forget(member: Member) -> None:
    """Removes what a record has put in the place of a run."""
    for name in FILES:
        (member.workdir / name).unlink(missing_ok=True)


def _without_places(value: Any) -> Any:
    """JSON in which paths below this folder are relative, and others are names: they mean nothing elsewhere."""
    if isinstance(value, dict):
        return {name: _without_places(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    if isinstance(value, str) and os.path.isabs(value):
        path = pathlib.PurePath(value)
        return str(path.relative_to(os.getcwd())) if path.is_relative_to(os.getcwd()) else path.name
    return value
