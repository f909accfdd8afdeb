"""Opens the files of data sets: only regular files inside their folder, and only up to a size.

Others have written the names in a data set. A name may be that of a pipe that blocks for ever, of a device without end,
of a link to /etc, or of a file of four terabytes that takes no room on the disk. All of these are refused before the
first byte is read. While the storage of a file cannot be reached, reading is tried again.
"""

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import BinaryIO, TypeVar

from transfusion import storage
from transfusion.remote.urls import fetch_missing

_T = TypeVar("_T")

MEDIA_BYTES = 2**30  # an image, clip or sound of more than 1 GiB is refused
_FOLDERS = 100_000  # a source remembers one file in each of so many folders
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str) -> BinaryIO:
    """Opens a file to read its bytes. It never waits, as opening a pipe would.

    Raises:
      OSError: if it cannot be opened.
      ValueError: with one line, if it is a folder, a pipe, a socket or a device.
    """
    _check_regular(os.stat(path))  # before it is opened, because opening a device may start something
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_regular(os.fstat(file.fileno()))  # it may have been replaced in between
    except ValueError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        raise ValueError(f"it is {kind}, not a file")


def read_part(file: BinaryIO, start: int, size: int) -> bytes:
    """Reads `size` bytes from the offset `start`.

    Raises:
      ValueError: if the file ends before.
    """
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"it breaks off after {len(data)} of {size} bytes")
    return data


def read_whole(path: str, limit: int = MEDIA_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
      OSError: if it cannot be read.
      ValueError: with one line, if it is no regular file or holds more than `limit` bytes (known before it is read).
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it holds {size} bytes, over the limit of {limit}")
        data = file.read(size + 1)
    if len(data) > size:
        raise ValueError("it grew while it was read")
    return data


def patiently(path: str, action: Callable[[], _T], home: Iterable[str]) -> _T:
    """`action()`, which reads `path`, tried again while the storage fails or cannot be reached.

    If the file does not exist, that is a fault of the data as long as all paths of `home` exist. If one of them is
    missing, too, the storage is away (an unmounted disk, a folder that is being moved) and may come back.

    Raises:
      StorageError: if the storage goes on failing.
      OSError: what another try cannot change.
    """

    def attempt() -> _T:
        try:
            return action()
        except (FileNotFoundError, NotADirectoryError) as error:
            gone = next((place for place in home if not os.path.exists(place)), None)
            if gone is None:
                raise
            raise OSError(errno.EIO, f"{gone} is not there any more") from error

    return storage.insist(f"cannot read {path}", attempt)


def leads_out(root: str, path: str) -> bool:
    """Whether `path` lies outside of the folder `root` once all links are followed."""
    root = os.path.realpath(root)
    return os.path.commonpath((root, os.path.realpath(path))) != root


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """A folder of a data set. The names of its files were written by others.

    Attributes:
      path: the folder, as the user gave it.
      follow_links: whether links may lead out of it.
      home: further paths that exist as long as the storage can be reached.
      read_before: for each folder from which a file was read, the last such file; see `read`.
    """

    path: str
    follow_links: bool = False
    home: tuple[str, ...] = ()
    read_before: dict[str, str] = dataclasses.field(default_factory=dict, init=False, compare=False, repr=False)

    def path_of(self, name: str) -> str:
        """The path of the file `name`.

        Raises:
          ValueError: with one line, if the name or a link leads out of the folder.
        """
        path = os.path.join(self.path, name)
        inside = os.path.normpath(name)
        if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
            raise ValueError(f"lies outside the folder {self.path}")
        if not self.follow_links and leads_out(self.path, path):
            raise ValueError(f"is a link to outside the folder {self.path}: set follow_links=True if it may be read")
        return path

    def read(self, name: str, limit: int = MEDIA_BYTES) -> bytes:
        """The bytes of the file `name`.

        The files may lie on another disk than the captions. If a file is missing and a file that was read from the same
        folder before is missing, too, their disk is away. If the earlier file still exists, the name is wrong.

        Raises:
          StorageError: if the storage cannot be reached, or goes on failing.
          OSError: if there is no such file, or it cannot be read.
          ValueError: with one line, if it leads out of the folder, is no regular file, or holds more than `limit`.
        """
        fetch_missing(os.path.join(self.path, name))  # of a copy of a folder behind a URL
        path = self.path_of(name)
        folder = os.path.dirname(path)
        before = (self.read_before[folder],) if folder in self.read_before else ()
        data = patiently(path, lambda: read_whole(path, limit), (self.path, *self.home, *before))
        if before or len(self.read_before) < _FOLDERS:
            self.read_before[folder] = path
        return data
