"""Explains in one line what is wrong with a command line: the flag, the nearest right name, the line of the config."""

import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from transfusion.config.named import path_of, shipped
from transfusion.errors import UsageError, nearest


def check_config_file(argv: Sequence[str]) -> None:
    """Raises UsageError if --config names no file, which ml_collections would notice only when a field is read."""
    if path := _config_value(argv)[0]:
        _check_exists(path_of(path))


def _check_exists(path: str) -> None:
    if os.path.isfile(path):
        return
    what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
    folder = pathlib.Path(path).parent
    known = [str(folder / file.name) for file in folder.glob("*.py")] if folder.is_dir() else []
    known = known if os.sep in path or path.endswith(".py") else [*known, *shipped()]
    raise UsageError(f"the config file {path} {what}{nearest(path, known)}")


def explain(error: BaseException, argv: Sequence[str]) -> str:
    """Returns one line for an error that was raised while flags were parsed and the config file was loaded."""
    try:
        return _explain(error, argv)
    except UsageError as found:
        return str(found)


def _explain(error: BaseException, argv: Sequence[str]) -> str:
    if isinstance(error, UsageError):
        return str(error)
    config = config_of(argv)  # once more, before overrides: to find what is wrong
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error, config)
    for argument in argv:
        if argument.startswith("--config."):
            name, _, given = argument.removeprefix("--").partition("=")
            value = walk(config, name)
            if isinstance(error, flags.IllegalFlagValueError) and f"--{name}=" in str(error):
                return f"--{name} must be of type {type(value).__name__}, not {given!r}"
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__


def _config_value(argv: Sequence[str]) -> list[str]:
    """[path of the config file, its form if one is given]; [''] without --config."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            value = value if equals else next(iter(argv[i + 1 : i + 2]), "")
            return value.split(":", 1)
    return [""]


def config_of(argv: Sequence[str]) -> Any:
    """The config that a command line names, before any override; None if it names none."""
    path, *form = _config_value(argv)
    return load_config(path, *form) if path else None


def load_config(path: str, *form: str) -> Any:
    """What `get_config` of a config file returns; `path` may be the name of a config of the library, see `named`.

    Raises:
      UsageError: naming the line, if the file cannot be run.
    """
    path = path_of(path)
    _check_exists(path)
    try:
        module = runpy.run_path(path, run_name="config")
        if "get_config" not in module:
            raise UsageError(f"{path}: no function get_config{nearest('get_config', module)}")
        return module["get_config"](*form)
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except BaseException as error:  # the user's code: it raises what it likes
        line = _line_in(path, error)
        where = f"{path}, line {line}" if line else path
        said = f": {error}" if str(error) else ""
        raise UsageError(f"{where}: {type(error).__name__}{said}") from error


def _line_in(path: str, error: BaseException) -> int | None:
    """The line of the file that raised the error, or that called the code which did; None if the file did neither."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.isfile(f.filename)]
    return next((f.lineno for f in reversed(frames) if os.path.samefile(f.filename, path)), None)


def raised_in_config(error: BaseException, argv: Sequence[str]) -> bool:
    """Whether the --config file raised the error, and not the program around it."""
    path = path_of(_config_value(argv)[0])
    return bool(path) and os.path.isfile(path) and _line_in(path, error) is not None


def walk(config: Any, name: str) -> Any:
    """The value of 'config.a.b'.

    Raises:
      UsageError: naming the first field that does not exist, and the nearest one that does.
    """
    node, done = config, "--config"
    for part in name.split(".")[1:]:
        field, *indices = re.findall(r"[^\[\]]+", part) or [part]
        if not isinstance(node, (Mapping, ml_collections.ConfigDict)):
            raise UsageError(f"{done} is a value and has no field {field!r}")
        if field not in node:
            raise UsageError(f"{done}: unknown field {field!r}{nearest(field, list(node))}")
        node, done = node[field], f"{done}.{part}"
        for index in indices:
            if not isinstance(node, (list, tuple)) or not index.isdigit() or int(index) >= len(node):
                raise UsageError(f"{done}: there is no entry [{index}]")
            node = node[int(index)]
    return node


def _unknown_flag(error: flags.UnrecognizedFlagError, config: Any) -> str:
    name = error.flagname
    if name.startswith("config."):
        walk(config, name)
    fields = [] if config is None else list(config)
    # A field of the config without its prefix is the usual slip.
    known = {flag: f"--{flag}" for flag in flags.FLAGS} | {field: f"--config.{field}" for field in fields}
    hint = nearest(name, known)
    for flag, full in known.items():
        hint = hint.replace(f"'{flag}'", full)
    return f"unknown flag --{name}{hint}"
