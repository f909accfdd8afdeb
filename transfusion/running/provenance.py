"""Finds and records where numbers come from: the command, the versions, the source code and the machine."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from transfusion import __version__, storage

PACKAGES = ("jax", "flax", "optax", "numpy")
COMMANDS = "commands.jsonl"


def versions() -> dict[str, str]:
    """The versions of Python, of this package, and of the packages that compute."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"transfusion": __version__, "python": platform.python_version()} | found


def source_code() -> str:
    """A digest of this package's source files, which tells two commits of one version apart."""
    folder, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


def code() -> dict[str, str | bool | None]:
    """Which source code this is.

    Returns:
      'commit' of git, and whether the checkout is 'dirty'; both are None if this package is in no checkout, or there is
      no git. 'source' is the digest of the files.
    """
    here = pathlib.Path(__file__)
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)  # a checkout around a venv is another's
    commit = _git(here.parent, "rev-parse", "HEAD") if tracked else None
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed), "source": source_code()}


def code_text() -> str:
    """The result of `code` in a few words."""
    found = code()
    commit = found["commit"] or "no commit known"
    return f"{commit}{', dirty' if found['dirty'] else ''} (source {found['source']})"


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """The output of git on the repository around a folder; None if git fails or is not installed."""
    # Inside of a hook, git's variables name the repository of the hook.
    around = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, env=around,
            errors="replace", stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, str | int]:
    """Usable CPU cores, platform and JAX devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = jax.devices()
    return {
        "cpu_cores": cores,
        "platform": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def now() -> str:
    """The date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line of this process, as one would type it."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = ["python", "-m", main.name] if main is not None else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def record_command(workdir: str | os.PathLike, step: int = 0, changes: Sequence[dict] = ()) -> None:
    """Appends the command, the versions, the code and the machine to the workdir's commands.jsonl.

    Args:
      step: the step that the command continues from.
      changes: the fields of the config that have changed, as {"field", "old", "new", "step"}.

    Raises:
      UsageError: if it cannot be written.
    """
    if jax.process_index() != 0:
        return
    storage.make_folder(workdir)
    row = {"date": now(), "command": command(), "versions": versions(), "code": code(), "machine": machine()}
    row |= {"step": step} | ({"changes": list(changes)} if changes else {})
    storage.append_line(epath.Path(workdir) / COMMANDS, json.dumps(row))


def read_commands(workdir: str | os.PathLike) -> list[dict]:
    """The rows of commands.jsonl, oldest first; [] if there is none. Damaged lines are left out with a warning."""
    return storage.read_json_lines(epath.Path(workdir) / COMMANDS, _is_command)[0]


def _is_command(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("command"), str)
