"""Finds the config files that come with the library: `--config digits` works in any folder, with or without a checkout.

They lie in `configs/` of a checkout, and in `transfusion/configs/` of an installed package.
"""

import ast
import functools
import os
import pathlib
from collections.abc import Sequence

import transfusion

_PACKAGE = pathlib.Path(transfusion.__file__).parent


@functools.cache
def shipped() -> dict[str, pathlib.Path]:
    """The config files that come with the library, by name."""
    folder = next(f for f in (_PACKAGE / "configs", _PACKAGE.parent / "configs", _PACKAGE) if f.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder != _PACKAGE else {}


def path_of(config: str) -> str:
    """The file of a config: `config` itself if there is such a file, else the one of this name that the library has.

    'digits', 'digits.py' and 'configs/digits.py' name a config of the library, so that a command which was written for
    a checkout works without one. A name that the library does not have is returned as it is.
    """
    path = pathlib.PurePath(config)
    if os.path.isfile(config) or path.parent.as_posix() not in (".", "configs") or path.suffix not in ("", ".py"):
        return config
    return str(shipped().get(path.stem, config))


def with_path(value: str) -> str:
    """The value of a flag --config, such as 'digits:unet', with the path of its file."""
    name, colon, form = value.partition(":")
    return f"{path_of(name)}{colon}{form}"


def with_paths(argv: Sequence[str]) -> list[str]:
    """A command line whose --config names a file."""
    result = list(argv)
    for i, argument in enumerate(argv):
        if argument in ("--config", "-config") and i + 1 < len(argv):
            result[i + 1] = with_path(argv[i + 1])
        for prefix in ("--config=", "-config="):
            if argument.startswith(prefix):
                result[i] = prefix + with_path(argument.removeprefix(prefix))
    return result


def first_sentence(path: pathlib.Path) -> str:
    """The first line of a config file's docstring; '' if it has none."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def forms(path: pathlib.Path) -> tuple[str, ...]:
    """The forms of a config file, as its `FORMS` lists them; () if it lists none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FORMS":
            return tuple(form for form in ast.literal_eval(node.value) if form)
    return ()
