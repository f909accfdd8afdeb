"""Checksums of checkpoint folders ("seals"), and the house-keeping of the folder that holds them.

`<root>/300/` is the checkpoint of step 300, `<root>/.seal-300.json` holds the size and SHA-256 of each of its files.
`<root>/.saving-300` says that this is not so yet: what a process that died has left there was never finished.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator

from absl import logging
from etils import epath

from transfusion import storage


def folder_of(workdir: str | os.PathLike) -> epath.Path:
    """The folder of a run's checkpoints."""
    path = epath.Path(workdir)
    return (path if "://" in str(path) else path.expanduser().absolute()) / "checkpoints"


def damage(root: epath.Path, step: int) -> str | None:
    """Returns None if every file of checkpoint `step` is as it was sealed, else what is wrong, in a few words.

    Raises:
      OSError: if the storage fails in a way that may pass.
    """
    folder = epath.Path(root) / str(step)
    try:
        files = _read_seal(root, step)
        for name, (size, _) in files.items():
            if not (folder / name).exists():
                return f"file {name}: missing"
            if (found := _size(folder / name)) != size:
                return f"file {name}: {found} bytes instead of {size}"
        digests = _digests(folder, files)
    except FileNotFoundError:
        return "no checksums: it was not finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{seal_path(root, step).name} is unreadable"
    except OSError as error:
        if storage.may_pass(error):
            raise
        return " ".join(str(error).split())
    wrong = [name for name, (_, digest) in files.items() if digests[name] != digest]
    return f"file {wrong[0]}: checksum differs" if wrong else None


def newest_intact(root: epath.Path) -> tuple[int | None, dict[int, str]]:
    """Returns (newest intact step or None, what is wrong with each newer one).

    A checkpoint that cannot be read now is damaged only if an older one can be read then, time after time.

    Raises:
      StorageError: if some cannot be read and no other is intact.
    """
    for pause in (*storage.PAUSES, None):
        step, rejected, failing = None, {}, ""
        try:
            for candidate in reversed(steps_on_disk(root)):
                try:
                    reason = damage(root, candidate)
                except OSError as error:
                    reason = failing = " ".join(str(error).split())
                if reason is None:
                    step = candidate
                    break
                rejected[candidate] = reason
        except OSError as error:  # of the folder itself
            failing = " ".join(str(error).split())
        if not failing or (pause is None and step is not None):
            return step, rejected
        if pause is None:
            break
        logging.warning("the checkpoints in %s cannot be read (%s); trying again in %g s", root, failing, pause)
        time.sleep(pause)
    raise storage.StorageError(f"the checkpoints in {root} cannot be read and stay as they are: {failing}")


def _read_seal(root: epath.Path, step: int) -> dict[str, tuple[int, str]]:
    files = json.loads(seal_path(root, step).read_text())["files"]
    if not files:
        raise ValueError("no files")
    return {str(name): (int(size), str(digest)) for name, (size, digest) in files.items()}


def write_seal(root: epath.Path, step: int) -> None:
    """Seals the committed checkpoint `step`; raises OSError."""
    folder = epath.Path(root) / str(step)
    names = sorted(_files(folder))
    digests = _digests(folder, names)
    files = {name: [_size(folder / name), digests[name]] for name in names}
    path = seal_path(root, step)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"step": step, "files": files}))
    temporary.replace(path)
    _saving_path(root, step).unlink(missing_ok=True)


def mark_unfinished(root: epath.Path, step: int) -> None:
    """Says that a checkpoint of `step` comes, until it is sealed; raises OSError."""
    _saving_path(root, step).write_text("")


def finished(root: epath.Path) -> list[int]:
    """The steps on disk but for those whose saving never ended, which `remove_leftovers` removes."""

    def look() -> list[int]:
        begun = {path.name.removeprefix(".saving-") for path in epath.Path(root).glob(".saving-*")}
        return [step for step in steps_on_disk(root) if str(step) not in begun or seal_path(root, step).exists()]

    return storage.insist(f"cannot read {root}", look)


def _saving_path(root: epath.Path, step: int) -> epath.Path:
    return epath.Path(root) / f".saving-{step}"


def _files(folder: epath.Path, above: str = "") -> Iterator[str]:
    """All files below a folder, by their path in it. `walk` would give those of a bucket without its scheme."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{above}{path.name}/")
        else:
            yield above + path.name


def _size(path: epath.Path) -> int:
    # epath's own `stat` asks for the owner's name, which not every owner has.
    return path.stat().length if "://" in str(path) else os.stat(path).st_size


def _digests(folder: epath.Path, names: Iterable[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(digest, names), strict=True))


def remove_leftovers(root: epath.Path) -> None:
    """Removes unfinished saves and seals of checkpoints that are gone; makes the folder if there is none."""
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
        path.unlink(missing_ok=True)
    kept = {seal_path(root, step) for step in steps_on_disk(root)}
    for path in root.glob(".seal-*"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _remove(folder: epath.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmtree(missing_ok=True)


def without_leftovers(root: epath.Path, save: Callable[[], bool]) -> bool:
    """`save()`, and once more if the last writes of a failed save came after its folder had been removed."""
    try:
        return save()
    except FileExistsError:
        remove_leftovers(root)
        return save()


def move_aside(root: epath.Path, steps: list[int]) -> None:
    """Renames damaged checkpoints to `damaged-<step>`, in place of those of an earlier call, which go."""
    if steps:
        for old in epath.Path(root).glob("damaged-*"):
            _remove(old)
    for step in steps:
        (root / str(step)).rename(root / f"damaged-{step}")
        seal_path(root, step).unlink(missing_ok=True)


def steps_on_disk(root: epath.Path) -> list[int]:
    """Returns the steps that have a folder, ascending, whatever is in it. Raises OSError if `root` cannot be read."""
    try:  # `is_dir` would take a folder that cannot be read now for none
        names = [path.name for path in epath.Path(root).iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if str(int(name)) == name)


def seal_path(root: epath.Path, step: int) -> epath.Path:
    """Returns the file that holds the checksums of checkpoint `step`."""
    return root / f".seal-{step}.json"
