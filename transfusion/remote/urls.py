"""Copies of files behind URLs (gs://, s3://, hf://, https://), for readers that need random access to local files.

A folder or a file behind a URL gets a place in the cache of this machine. What a reader needs to begin is fetched at
once, and other files when they are first read (`fetch_missing`). A file is fetched again if its size, its time or its
tag have changed. Credentials are those that each driver finds in its environment or its files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from transfusion import storage
from transfusion.errors import UsageError, check, require

T = TypeVar("T")

# Scheme -> the module that fsspec needs for it, and the extra that brings the module.
SCHEMES: dict[str, tuple[str, str]] = {
    "gs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "hf": ("huggingface_hub", "hub"),
    "https": ("aiohttp", "http"),
    "http": ("aiohttp", "http"),
    "memory": ("fsspec", "http"),
}
CACHE = "TRANSFUSION_CACHE"
_FACTS = ("size", "ETag", "etag", "mtime", "LastModified", "updated", "md5Hash", "blob_id", "created")
_GLOB = re.compile(r"[*?\[{]")


def is_url(path: str) -> bool:
    """Whether the path is a URL."""
    return "://" in path


def cache_folder() -> str:
    """Where copies lie: sources/ below $TRANSFUSION_CACHE, or below ~/.cache/transfusion."""
    return os.path.join(os.environ.get(CACHE) or os.path.expanduser("~/.cache/transfusion"), "sources")


@dataclasses.dataclass(frozen=True)
class Mirror:
    """The copy of a folder behind a URL.

    Attributes:
      url: of the folder, without a slash at its end.
      folder: where its files are copied to, under the same names.
    """

    url: str
    folder: str

    @functools.cached_property
    def _system(self) -> tuple[Any, str]:
        """The file system of fsspec, and the folder's path there."""
        scheme = self.url.partition("://")[0]
        check(f"{self.url}: the scheme", scheme, SCHEMES)
        require(*SCHEMES[scheme])
        fsspec = require("fsspec", SCHEMES[scheme][1])
        hub = os.environ.get("HF_ENDPOINT")
        options = {"endpoint": hub} if scheme == "hf" and hub else {}  # the library asks once, when it is imported
        return _patiently(self.url, lambda: fsspec.core.url_to_fs(self.url, **options))

    def _remote(self, name: str) -> str:
        root = self._system[1]
        return f"{root.rstrip('/')}/{name}" if name else root

    def is_folder(self) -> bool:
        """Whether the URL is that of a folder; a web server's folder counts if it lists its files."""
        system, root = self._system
        return _patiently(self.url, lambda: bool(system.isdir(root)))

    def names(self, pattern: str = "") -> list[str]:
        """The names of the files, sorted: those directly in the folder, or those that match a glob `pattern`, in which
        ** stands for any folders."""
        system, root = self._system
        found = _patiently(self.url, lambda: system.glob(self._remote(pattern or "*"), detail=True))
        files = [path for path, about in found.items() if about.get("type") == "file"]
        return sorted(
            os.path.relpath(path, root) if not is_url(path) else path[len(root) :].lstrip("/") for path in files
        )

    def fetch(self, name: str) -> bool:
        """Copies a file, unless the copy is the same; returns whether there is such a file.

        Raises:
          UsageError: if it may not be read.
          StorageError: if it cannot be fetched, or the disk has no room for it.
        """
        path, url = os.path.join(self.folder, name), f"{self.url}/{name}"
        if not _inside(name):
            raise ValueError(f"lies outside the folder {self.url}")
        system, _ = self._system
        try:
            about = _patiently(url, lambda: system.info(self._remote(name)))
        except FileNotFoundError:
            return False
        if about.get("type") not in (None, "file"):
            return False
        facts = {key: str(about[key]) for key in _FACTS if about.get(key) is not None}
        if os.path.isfile(path) and _known_facts(path) == facts:
            return True
        self._copy(url, name, path, about.get("size"))
        storage.write_whole(_facts_path(path), json.dumps(facts))
        return True

    def _copy(self, url: str, name: str, path: str, size: int | None) -> None:
        storage.make_folder(os.path.dirname(path))
        free = shutil.disk_usage(os.path.dirname(path)).free
        if size and size > free:
            raise storage.StorageError(
                f"cannot copy {url}: it takes {size / 1e9:.3g} GB, and {free / 1e9:.3g} are free"
            )
        temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.part"

        def copy() -> None:
            with self._system[0].open(self._remote(name), "rb") as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            if size is not None and os.path.getsize(temporary) != size:
                raise OSError(5, f"{os.path.getsize(temporary)} of {size} bytes came")

        try:
            _patiently(url, copy)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


_mirrors: dict[str, Mirror] = {}  # by folder; filled by `mirror_of`, and read by `fetch_missing`


def mirror_of(url: str) -> Mirror:
    """The copy of the folder behind a URL."""
    url = url.rstrip("/")
    folder = os.path.join(
        cache_folder(), hashlib.sha256(url.encode()).hexdigest()[:16], os.path.basename(url) or "root"
    )
    return _mirrors.setdefault(folder, Mirror(url, folder))


def fetch_missing(path: str) -> None:
    """Fetches the file of a copied folder, if `path` is one that is not there yet."""
    if not _mirrors or os.path.lexists(path):
        return
    above = os.path.dirname(path)
    while above and above != os.path.dirname(above):
        if above in _mirrors:
            _mirrors[above].fetch(os.path.relpath(path, above))
            return
        above = os.path.dirname(above)


def copied_folder(url: str, first: Iterable[str], one: bool = False) -> str:
    """The path of a copy of a folder in which the files that match the patterns `first` are there already; with `one`,
    those of the first pattern that matches a file.

    Raises:
      UsageError: if none of them exists.
    """
    mirror, found = mirror_of(url), 0
    listed = mirror.is_folder()
    for pattern in first:
        names = mirror.names(pattern) if listed else [pattern] if not _GLOB.search(pattern) else []
        found += sum([mirror.fetch(name) for name in names])
        if found and one:
            break
    if not found:
        raise UsageError(f"{url}: there is none of {', '.join(first)}, or it is not yours to read")
    return mirror.folder


def copied_files(url: str, braces: Callable[[str], Iterable[str]]) -> str:
    """The path, or pattern of paths, of copies of the files that a URL or a pattern names.

    Args:
      braces: gives the names that a pattern with braces stands for.

    Raises:
      UsageError: if there is no such file.
    """
    folder, _, base = url.rpartition("/")
    mirror, missing, found = mirror_of(folder), [], 0
    for name in braces(base):
        names = mirror.names(name) if re.search(r"[*?\[]", name) else [name]
        fetched = [mirror.fetch(each) for each in names]
        found += sum(fetched)
        missing += [] if names and all(fetched) else [name]
    if missing:
        raise UsageError(f"{url}: there is no {missing[0]}, or it is not yours to read")
    return os.path.join(mirror.folder, base)


def _inside(name: str) -> bool:
    plain = os.path.normpath(name)
    return not os.path.isabs(plain) and plain.split(os.sep)[0] != os.pardir


def _facts_path(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.about")


def _known_facts(path: str) -> Mapping[str, str] | None:
    try:
        return storage.read_json(_facts_path(path))
    except ValueError:
        return None


def _patiently(url: str, action: Callable[[], T]) -> T:
    """`action()`, tried again while the network fails; what a driver raises of its own becomes an OSError.

    Raises:
      FileNotFoundError: if there is no such file.
      UsageError: if it may not be read.
      StorageError: if it goes on failing.
    """

    def attempt() -> T:
        try:
            return action()
        except (UsageError, FileNotFoundError):
            raise
        except PermissionError as error:
            raise UsageError(f"{url}: it is not yours to read: {storage.one_line(error)}") from error
        except OSError as error:
            raise OSError(error.errno or 5, storage.one_line(error)) from error
        except Exception as error:  # drivers raise what their clients do
            status = getattr(error, "status", None) or getattr(error, "code", None)
            if status in (401, 403):
                raise UsageError(f"{url}: it is not yours to read ({status})") from error
            raise OSError(5, f"{type(error).__name__}: {storage.one_line(error)}") from error

    return storage.insist(f"cannot read {url}", attempt)
