"""`transfusion COMMAND ...` runs the module of a command as `python -m MODULE ...` does."""

import importlib.util
import runpy
import sys
from collections.abc import Sequence

from transfusion import __version__
from transfusion.commands.table import COMMANDS, GROUPS
from transfusion.errors import UsageError, nearest


def usage() -> str:
    """The list of commands."""
    lines = ["usage: transfusion COMMAND [flags]", ""]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<14}{command.help}" for name, command in group.items()), ""]
    lines.append("transfusion COMMAND --help explains a command, its flags and the fields of its config.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that `argv` (default: the command line) names; its module ends the process as it likes."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("--help", "-h", "-help", "help"):
        print(usage())
        return
    if name == "--version":
        print(f"transfusion {__version__}")
        return
    try:
        module = _module(name)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    sys.argv = [f"transfusion {name}", *COMMANDS[name].first, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _module(name: str) -> str:
    """The module of a command.

    Raises:
      UsageError: if there is no such command, or this version does not have its module.
    """
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}{nearest(name, COMMANDS)}: transfusion --help lists them")
    module = COMMANDS[name].module
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"this installation has no {module}, which `transfusion {name}` needs: install a newer version"
        )
    return module
