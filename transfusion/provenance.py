"""Where numbers come from: the command, the versions and the machine, written beside them."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

import jax
from etils import epath

from transfusion import storage
from transfusion.version import __version__

PACKAGES = ("jax", "flax", "optax", "numpy")
COMMANDS = "commands.jsonl"


def versions() -> dict[str, str]:
    """Of Python, this package and what computes."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"transfusion": __version__, "python": platform.python_version()} | found


def source_code() -> str:
    """A digest of this package's source files: two commits of one version differ."""
    folder, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


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


def record_command(workdir: str | os.PathLike) -> None:
    """Appends this process' command, versions and machine to the workdir's commands.jsonl."""
    if jax.process_index() != 0:
        return
    storage.make_folder(workdir)
    row = {"date": now(), "command": command(), "versions": versions(), "machine": machine()}
    storage.append_line(epath.Path(workdir) / COMMANDS, json.dumps(row))


def read_commands(workdir: str | os.PathLike) -> list[dict]:
    """The rows of commands.jsonl, oldest first; [] if there is none. Damaged lines are left out with a warning."""
    return storage.read_json_lines(epath.Path(workdir) / COMMANDS, _is_command)[0]


def _is_command(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("command"), str)
