"""Checksums of checkpoint folders ("seals"), and the house-keeping of the folder that holds them.

`<root>/300/` is the checkpoint of step 300, `<root>/.seal-300.json` holds the size and SHA-256 of each of its files.
`<root>/.saving-300` is there while the checkpoint is being written; after a crash it marks one that was never finished.

A seal stays when its checkpoint is moved away, so that the checkpoint is whole again once it is moved back.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from absl import logging
from etils import epath

from transfusion import storage

LARGEST_SEAL = 2**26  # bytes: half a million files


def folder_of(workdir: str | os.PathLike) -> epath.Path:
    """The folder of a run's checkpoints."""
    path = epath.Path(workdir)
    return (path if storage.is_bucket(path) else path.expanduser().absolute()) / "checkpoints"


# --- is it intact? ----------------------------------------------------------------------------------------------------


def damage(root: epath.Path, step: int) -> str | None:
    """Returns None if every file of checkpoint `step` is as it was sealed, else what is wrong, in a few words.

    Only regular files inside the checkpoint's folder are read, after their sizes have been compared: a seal that names
    other files, and a link or a device in the place of a file, are damage. The folder itself may be a link. Files that
    the seal does not name are ignored: systems put files of their own into folders (.nfs..., .DS_Store), and sealed
    files name all others that a restore reads.

    Raises:
      OSError: if the storage fails in a way that may pass.
    """
    folder = epath.Path(root) / str(step)
    try:
        sealed = _read_seal(root, step)
        sizes = dict(_sizes(folder))
        for name, (size, _) in sealed.items():
            if (found := sizes.get(name)) != size:
                return f"file {_shown(name)}: " + ("missing" if found is None else f"{found} bytes instead of {size}")
        digests = _digests(folder, sealed)
    except ValueError as error:
        return str(error)
    except OSError as error:
        if storage.may_pass(error):
            raise
        return " ".join(str(error).split())
    wrong = [name for name, (_, digest) in sealed.items() if digests[name] != digest]
    return f"file {_shown(wrong[0])}: checksum differs" if wrong else None


def newest_intact(root: epath.Path, known: Mapping[int, str] = {}) -> tuple[int | None, dict[int, str]]:
    """Returns (newest intact step or None, what is wrong with each newer one).

    A checkpoint that cannot be read counts as damaged only if, after several tries, an older one can be read. Steps in
    `known` are damaged, for the reason given there, and are not looked at again.

    Raises:
      StorageError: if some cannot be read and no other is intact.
      UsageError: if the folder can never be read.
    """
    for pause in (*storage.PAUSES, None):
        step, rejected, failing = None, {}, ""
        try:
            for candidate in reversed(steps_on_disk(root)):
                try:
                    reason = known[candidate] if candidate in known else damage(root, candidate)
                except OSError as error:
                    reason = failing = " ".join(str(error).split())
                if reason is None:
                    step = candidate
                    break
                rejected[candidate] = reason
        except OSError as error:  # the folder itself cannot be read
            if not storage.may_pass(error):
                raise storage.lasting(f"cannot read the checkpoints in {root}", error) from error
            failing = " ".join(str(error).split())
        if not failing or (pause is None and step is not None):
            return step, rejected
        if pause is None:
            break
        logging.warning("the checkpoints in %s cannot be read (%s); trying again in %g s", root, failing, pause)
        time.sleep(pause)
    raise storage.StorageError(f"the checkpoints in {root} cannot be read and stay as they are: {failing}")


def _read_seal(root: epath.Path, step: int) -> dict[str, tuple[int, str]]:
    """(size, digest) by name; raises OSError, or ValueError with what is wrong."""
    path = seal_path(root, step)
    try:
        seal = storage.parse(storage.read_bytes(path, LARGEST_SEAL))
    except FileNotFoundError:
        raise ValueError("no checksums: it was not finished") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is unreadable: {str(error)[:100]}") from error
    if not isinstance(seal, dict) or not isinstance(files := seal.get("files"), dict) or not files:
        raise ValueError(f"{path.name} is unreadable: it names no files")
    if seal.get("step") != step or type(seal["step"]) is not int:
        raise ValueError(f"{path.name} is of step {_shown(str(seal.get('step')))}")
    for name, entry in files.items():
        if not isinstance(entry, list) or [type(part) for part in entry] != [int, str]:
            raise ValueError(f"{path.name} is unreadable: of file {_shown(name)} it says no size and checksum")
        if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{path.name} names a file outside of the checkpoint: {_shown(name)}")
    return {name: (size, digest) for name, (size, digest) in files.items()}


def _shown(name: str) -> str:
    """A name from a seal, which may come from anybody, as text that fits on one line."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name)[:200]


def write_seal(root: epath.Path, step: int) -> None:
    """Seals the committed checkpoint `step`; raises OSError."""
    folder = epath.Path(root) / str(step)
    sizes = dict(sorted(_sizes(folder)))
    digests = _digests(folder, sizes)
    files = {name: [size, digests[name]] for name, size in sizes.items()}
    storage.put(seal_path(root, step), json.dumps({"step": step, "files": files}))
    _saving_path(root, step).unlink(missing_ok=True)


def mark_unfinished(root: epath.Path, step: int) -> None:
    """Marks `step` as being saved, until it is sealed; raises OSError.

    It makes the folder again if that was moved away, and removes the seal of an earlier checkpoint of this step.
    """
    root.mkdir(parents=True, exist_ok=True)
    storage.put(_saving_path(root, step), "")
    _remove(seal_path(root, step))


def finished_steps(root: epath.Path) -> list[int]:
    """The steps on disk, without those that were never finished, which `remove_leftovers` removes."""

    def look() -> list[int]:
        begun = {path.name.removeprefix(".saving-") for path in epath.Path(root).glob(".saving-*")}
        return [step for step in steps_on_disk(root) if str(step) not in begun or seal_path(root, step).exists()]

    return storage.insist(f"cannot read {root}", look)


def _saving_path(root: epath.Path, step: int) -> epath.Path:
    return epath.Path(root) / f".saving-{step}"


def seal_path(root: epath.Path, step: int) -> epath.Path:
    """Returns the file that holds the checksums of checkpoint `step`."""
    return root / f".seal-{step}.json"


def _sizes(folder: epath.Path, above: str = "") -> Iterator[tuple[str, int]]:
    """(path in the folder, bytes) of all regular files below a folder; links below it are not followed."""
    if storage.is_bucket(folder):  # `walk` would give the files of a bucket without its scheme
        for path in folder.iterdir():
            if path.is_dir():
                yield from _sizes(path, f"{above}{path.name}/")
            else:
                yield above + path.name, path.stat().length
        return
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield below + entry.name, entry.stat(follow_symlinks=False).st_size


def _digests(folder: epath.Path, names: Iterable[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(digest, names), strict=True))


# --- house-keeping ----------------------------------------------------------------------------------------------------


def steps_on_disk(root: epath.Path) -> list[int]:
    """Returns the steps that have a folder, ascending, whatever is in it. Raises OSError if `root` cannot be read."""
    try:  # `is_dir` would say False of a folder that cannot be read now
        names = [path.name for path in epath.Path(root).iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if str(int(name)) == name)


def remove_leftovers(root: epath.Path) -> None:
    """Removes unfinished saves and half-deleted checkpoints; makes the folder if there is none. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    for _ in range(20):  # the last writes of a failed save may come later, and bring its folder back
        leftovers = list(epath.Path(root).glob("*.orbax-checkpoint-tmp*"))
        if not leftovers:
            break
        for path in leftovers:
            _remove(path)
        time.sleep(0.1)
    for path in epath.Path(root).glob(".saving-*"):
        step = path.name.removeprefix(".saving-")
        if step.isdecimal() and (root / step).exists() and not seal_path(root, int(step)).exists():
            logging.warning("checkpoint %s was not finished, and is removed", step)
            _remove(root / step)
        _remove(path)
    for pattern in (".deleting-*", ".seal-*.tmp"):
        for path in epath.Path(root).glob(pattern):
            _remove(path)


def without_leftovers(root: epath.Path, save: Callable[[], bool]) -> bool:
    """Calls `save`, and calls it again if the last writes of a failed save came after its folder had been removed."""
    try:
        return save()
    except FileExistsError:
        remove_leftovers(root)
        return save()


def move_aside(root: epath.Path, steps: Iterable[int]) -> None:
    """Renames damaged checkpoints to `damaged-<step>`, and removes those of an earlier call.

    It warns of one that cannot be moved, which stays.
    """
    steps = list(steps)
    for old in epath.Path(root).glob("damaged-*") if steps else ():
        _remove(old)
    for step in steps:
        try:
            (root / str(step)).rename(root / f"damaged-{step}")
            seal_path(root, step).unlink(missing_ok=True)
        except OSError as error:
            logging.warning("damaged checkpoint %d cannot be moved aside, and stays: %s", step, error.strerror or error)


def discard(root: epath.Path, step: int) -> bool:
    """Deletes a checkpoint. Returns False if it was moved away; its seal stays then.

    The folder is renamed before its files are deleted, so that no part of a checkpoint is ever taken for the whole. If
    the folder is a link, only the link is removed.

    Raises:
      OSError: if it stays.
    """
    folder, away = root / str(step), root / f".deleting-{step}"
    if storage.is_bucket(root):  # folders of a bucket cannot be renamed
        seal_path(root, step).unlink(missing_ok=True)
        folder.rmtree()
        return True
    _remove(away)
    try:
        os.rename(folder, away)
    except FileNotFoundError:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(seal_path(root, step))
    if not _remove(away):
        logging.warning("files of the deleted checkpoint %d are left in %s", step, away)
    return True


def _remove(path: epath.Path) -> bool:
    """Removes a file, a link or a folder, as much of it as can be removed; returns whether it is gone."""
    try:
        if path.is_dir() and not os.path.islink(path):
            path.rmtree()
        else:
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
