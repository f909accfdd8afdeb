"""Fetches a model from a hub that speaks Hugging Face's protocol: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION`.

The hub is the one at HF_ENDPOINT, by default huggingface.co. The token of a private model is that of the environment
variable HF_TOKEN or of the file that `hf auth login` writes, and is never given on a command line.
"""

import contextlib
import fnmatch
import functools
import importlib
import os
import re
import shutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from transfusion.errors import UsageError, require, shown
from transfusion.storage import StorageError, one_line

SCHEME = "hf://"
_NAME = re.compile(r"(?:hf://)?(?P<name>[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?/?", re.A)
# The only files that are fetched: none of them can run code.
FETCHED = ("*.json", "*.jsonl", "*.safetensors", "*.model", "*.txt", "*.md", "*.jinja", "*.png")


def is_model(path: str | os.PathLike) -> bool:
    """Whether the path is that of a model on a hub."""
    return os.fspath(path).startswith(SCHEME)


def model_name(path: str) -> tuple[str, str | None]:
    """('OWNER/NAME', revision or None); raises UsageError if the path, with or without hf://, is none."""
    found = _NAME.fullmatch(path)
    if not found:
        raise UsageError(f"{shown(path)} is not of the form hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return found["name"], found["revision"]


def local_copy(path: str | os.PathLike) -> str:
    """The folder of a model on this machine: of hf://OWNER/NAME a copy in the hub's cache, of all others the path.

    Raises:
      UsageError: if there is no such model, or it may not be read.
      StorageError: if the hub cannot be reached and there is no copy, or the disk has no room for one.
    """
    return _fetched(os.fspath(path)) if is_model(path) else os.fspath(path)


@functools.lru_cache(64)  # a program that opens a model several times reads one revision of it
def _fetched(path: str) -> str:
    name, revision = model_name(path)
    with errors_in_words(f"cannot fetch {path}"):
        client = api()
        _check_room(path, _size(client, name, revision))
        return client.snapshot_download(name, revision=revision, allow_patterns=list(FETCHED))


def _size(client: Any, name: str, revision: str | None) -> int:
    """The bytes of the files that would be fetched; 0 if the hub cannot be reached, where a copy may still serve."""
    try:
        found = client.model_info(name, revision=revision, files_metadata=True).siblings or ()
    except _http_error() as error:
        if hasattr(error, "response"):
            raise  # the hub has answered
        return 0
    wanted = [one for one in found if any(fnmatch.fnmatch(one.rfilename, pattern) for pattern in FETCHED)]
    return sum(one.size or 0 for one in wanted)


def _http_error() -> type[Exception]:
    """What the hub's client raises when the network fails, of whichever library it uses for HTTP."""
    kinds = importlib.import_module("huggingface_hub.errors").HfHubHTTPError.__mro__
    return next(kind for kind in kinds if kind.__name__ == "HTTPError")


def _check_room(path: str, needs: int) -> None:
    folder = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needs > free:
        raise StorageError(f"cannot fetch {path}: it takes {needs / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")


def api() -> Any:
    """The client of the hub (`huggingface_hub.HfApi`)."""
    library: ModuleType = require("huggingface_hub", "hub")
    return library.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextlib.contextmanager
def errors_in_words(what: str) -> Iterator[None]:
    """Turns the errors of the hub's client into a UsageError, or a StorageError where the same may work later."""
    require("huggingface_hub", "hub")
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(f"{what}: its owner asks you to accept terms on its page first") from error
    except (errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError) as error:
        raise UsageError(
            f"{what}: there is no such model, or it is not yours to use: set HF_TOKEN, or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{what}: it has no such revision") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", 500)
        if code in (401, 403):
            raise UsageError(f"{what}: it is not allowed with this token: set HF_TOKEN to one that may") from error
        kind = StorageError if code >= 500 or code == 429 else UsageError
        raise kind(f"{what}: {one_line(error)}") from error
    except (_http_error(), OSError, RuntimeError) as error:  # no network, and nothing in the cache
        if isinstance(error, UsageError):
            raise
        raise StorageError(f"{what}: {one_line(error)}") from error
    except ValueError as error:
        raise UsageError(f"{what}: {one_line(error)}") from error
