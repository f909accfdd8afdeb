"""Reads and writes files on storage that may be slow, full, away or damaged.

What may work later is tried again; the error that remains is one line. Files are replaced as a whole. A run's own files
are opened without following symbolic links, so that a workdir from elsewhere cannot make a program write over other
files, and they are read up to a limit, so that none of them can take all memory.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import logging
from etils import epath

from transfusion.errors import PassingError, UsageError

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
LARGEST = 2**28  # bytes of a file that is read whole, such as metrics.jsonl
MOST_LINES = 2**20  # lines of such a file
ROOM = 2**20  # bytes that `check_writable` asks for
# Errors that another try cannot change.
_LASTING = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EINVAL, errno.EILSEQ, errno.ENXIO,
    errno.ENODEV, errno.EXDEV, errno.ESPIPE, errno.EMLINK, errno.ENOTSUP, errno.EBADF,
}  # fmt: skip


def one_line(error: Exception) -> str:
    """Returns the message of an error of orbax, tensorstore or the system, shortened to one line."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or "No space left" in text:
        return "no space left on the disk"
    return text if len(text) <= 300 else text[:300] + " ..."


class StorageError(PassingError):
    """Storage failed, and still failed when it was tried again."""


def may_pass(error: OSError) -> bool:
    """Whether another try may work."""
    return error.errno is not None and error.errno not in _LASTING


def insist(what: str, action: Callable[[], T]) -> T:
    """Calls `action`, and calls it again after each of `PAUSES` while it raises an OSError that may pass.

    Raises:
      StorageError: '<what>: <reason>', if the last try fails.
      OSError: if another try cannot help, for example because a file does not exist.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except OSError as error:
            if not may_pass(error):
                raise
            reason = one_line(error)
        if pause is None:
            raise StorageError(f"{what}: {reason} ({len(PAUSES) + 1} attempts)")
        logging.warning("%s: %s; trying again in %g s", what, reason, pause)
        time.sleep(pause)
    raise AssertionError


def attempt(what: str, action: Callable[[], T]) -> T:
    """Calls `action` as `insist` does; every failure becomes an error of one line.

    Raises:
      StorageError: if the storage fails time after time, or is full (the same command may work later).
      UsageError: if it cannot work at all.
    """
    try:
        return insist(what, action)
    except OSError as error:
        raise lasting(what, error) from error


def lasting(what: str, error: OSError) -> UsageError:
    """The error of one line for an OSError that `insist` did not try again. Only a full disk may have room later."""
    kind = StorageError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UsageError
    if error.errno == errno.ELOOP:
        return kind(f"{what}: a symbolic link is in its place, which is not followed")
    return kind(f"{what}: {error.strerror or one_line(error)}")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces a file as a whole: a reader sees the old content or the new one, even if this process dies here.

    Text is written as UTF-8; a character that Unicode forbids, such as half of a surrogate pair, as '\\udc80'.

    Raises:
      StorageError: if the storage fails time after time, or is full (the same command may work later).
      UsageError: if the path cannot be written at all.
    """
    attempt(f"cannot write {path}", lambda: put(path, content))


def put(path: str | os.PathLike, content: str | bytes) -> None:
    """Does what `write_whole` does, in one try and with the system's errors, for callers that try again themselves."""
    data, path = _encoded(content), epath.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    if is_bucket(path):
        temporary.write_bytes(data)
        temporary.replace(path)
        return
    with _removed_on_failure(temporary):
        _write_new(temporary, data)
        os.replace(temporary, path)


def append_line(path: str | os.PathLike, line: str) -> None:
    """Appends a line to a text file; it is on disk when this returns. A file in a bucket cannot grow, and is replaced.

    The line begins on a line of its own, even if an earlier process left its last line without an end. If the line
    cannot be written whole, the part that was written is removed.

    Raises:
      StorageError: if the storage fails time after time, or is full, or the file's folder is away.
      UsageError: if the file cannot be written at all.
    """
    path, data = epath.Path(path), _encoded(line + "\n")

    def append() -> None:
        try:
            if is_bucket(path):
                _append_to_bucket(path, data)
            else:
                _append(path, data)
        except FileNotFoundError as error:  # the folder was there when the program began, and may come back
            raise OSError(errno.ESTALE, "its folder is gone", str(path)) from error

    attempt(f"cannot write {path}", append)


def check_writable(path: str | os.PathLike, size: int = ROOM) -> None:
    """Checks that `write_whole` could write `size` bytes there now, for programs that compute for long first.

    Raises:
      StorageError: if there is no room, or the storage fails time after time.
      UsageError: if the path cannot be written.
    """
    path = epath.Path(path)
    temporary = path.with_name(path.name + ".tmp")

    def probe() -> None:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with _removed_on_failure(temporary):
            _write_new(temporary, bytes(size))
        os.unlink(temporary)

    if not is_bucket(path):
        attempt(f"cannot write {path}", probe)


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder and those above it, unless it is there; raises UsageError or StorageError in one line."""
    attempt(f"cannot write to {path}", lambda: epath.Path(path).mkdir(parents=True, exist_ok=True))


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Waits until no other program holds the lock file `path`, and holds it while the context lasts.

    Storage without locks, such as some network file systems, is used without one.
    """
    with open(path, "wb", opener=own_file) as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether the path is in storage without a file system, such as gs://bucket/run."""
    return "://" in str(path)


def own_file(path: str, flags: int) -> int:
    """An `opener` for `open`: a symbolic link is refused (ELOOP), and a pipe in the file's place does not wait."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _encoded(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


def _write_new(path: epath.Path, data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a process that died
    with open(path, "xb", opener=own_file) as file:
        file.write(data)


@contextlib.contextmanager
def _removed_on_failure(path: epath.Path):
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _append(path: epath.Path, data: bytes) -> None:
    with open(path, "a+b", buffering=0, opener=own_file) as file:  # a buffer would be written again when it is closed
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"cannot write {path}: it is no file")
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def _append_to_bucket(path: epath.Path, data: bytes) -> None:
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(before + (b"" if before.endswith(b"\n") or not before else b"\n") + data)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_bytes(path: str | os.PathLike, most: int = LARGEST) -> bytes:
    """Reads the bytes of a file in one try.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is no file but a pipe or a device, or is larger than `most` bytes.
    """
    if is_bucket(path):
        path = epath.Path(path)
        _check_size(path.stat().length, most)
        return path.read_bytes()
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no file")
        _check_size(about.st_size, most)
        return file.read(about.st_size)  # not `most`, because `read` reserves as much memory as it is asked for


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it holds {size / 2**20:,.0f} MiB, more than {most / 2**20:,.0f}")


def parse(data: bytes) -> Any:
    """Reads JSON from UTF-8 bytes; raises ValueError, also if it is nested too deeply or holds NaN or Infinity."""
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_json(path: str | os.PathLike, most: int = LARGEST) -> Any:
    """The JSON of a file, None if there is no file.

    Raises:
      ValueError: if the content is damaged; the message says in a few words how.
      StorageError, UsageError: if it cannot be read.
    """
    try:
        data = attempt(f"cannot read {path}", lambda: _or_none(path, most))
        return None if data is None else parse(data)
    except ValueError as error:
        raise ValueError(one_line(error)) from error


def read_json_lines(path: str | os.PathLike, is_row: Callable[[Any], bool]) -> tuple[list[Any], int]:
    """Reads a file that has one JSON value per line.

    Lines that are no JSON, or for which `is_row` is false, are left out, with one warning for all of them.

    Returns:
      (rows, how many lines were left out). A last line without an end, which a crash leaves, does not count. A file
      that does not exist has no rows.

    Raises:
      StorageError, UsageError: if the file cannot be read, or is too large.
    """
    try:
        data = attempt(f"cannot read {path}", lambda: _or_none(path, LARGEST)) or b""
        if data.count(b"\n") > MOST_LINES:
            raise ValueError(f"it holds more than {MOST_LINES:,} lines")
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}; move it away") from error
    rows, wrong, cut = [], [], 0
    for number, line in enumerate(io.BytesIO(data), 1):  # ends lines at '\n' alone, not at U+2028
        if not line.strip():
            continue
        try:
            row = parse(line)
            good = is_row(row)
        except ValueError:
            good = False
        if good:
            rows.append(row)
        else:
            wrong.append(number)
            cut += not line.endswith(b"\n")
    if wrong:
        more = f" and {len(wrong) - 1} more lines are" if len(wrong) > 1 else " is"
        logging.warning("%s: line %d%s damaged, and left out; %d rows were read", path, wrong[0], more, len(rows))
    return rows, len(wrong) - cut


def _or_none(path: str | os.PathLike, most: int) -> bytes | None:
    try:
        return read_bytes(path, most)
    except FileNotFoundError:
        return None
