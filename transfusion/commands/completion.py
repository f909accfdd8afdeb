"""Prints a script that completes commands, flags, configs and fields of configs in a shell.

  transfusion completion bash > ~/.local/share/bash-completion/completions/transfusion
  transfusion completion zsh > ~/.zfunc/_transfusion          # a folder of $fpath, before compinit
  transfusion completion fish > ~/.config/fish/completions/transfusion.fish

The script holds the names themselves, so that completing starts no Python. Print it anew after an update.
"""

import importlib.util
import runpy
import warnings
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from transfusion import programs
from transfusion.commands.config import ACTIONS
from transfusion.commands.table import COMMANDS, Command
from transfusion.config import Experiment
from transfusion.config.describe import sections
from transfusion.config.named import forms, shipped
from transfusion.errors import UsageError, nearest


def flags_of(command: Command) -> list[str]:
    """The flags of a command's program, as --name, or --name= where a value follows; [] if this version lacks it."""
    if importlib.util.find_spec(command.module) is None:
        return []
    package = importlib.util.find_spec(f"{command.module}.__main__") if _is_package(command.module) else None
    importlib.import_module(package.name if package else command.module)  # other libraries define their flags now
    before, run = set(flags.FLAGS), programs.run
    programs.run = lambda *_, **__: None  # the program defines its flags, and then does nothing
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # runpy's: it is imported already
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        new = sorted(set(flags.FLAGS) - before)
        return [f"--{name}{'' if flags.FLAGS[name].boolean else '='}" for name in new]
    finally:
        programs.run = run
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def _is_package(module: str) -> bool:
    return importlib.util.find_spec(module).submodule_search_locations is not None


def words() -> dict[str, list[str]]:
    """What may follow each command: its flags, and --config with every config of the library and every field."""
    configs = [
        f"--config={name}{form and ':'}{form}" for name, path in shipped().items() for form in ("", *forms(path))
    ]
    paths = [f"{s.path}.{field.name}".lstrip(".") for s in sections(Experiment) for field in s.fields]
    fields = [f"--config.{path}=" for path in paths if "NAME" not in path and "[" not in path]
    found = {}
    for name, command in COMMANDS.items():
        own = flags_of(command)
        found[name] = [*FIRST.get(name, ()), *own, *(configs + fields if "--config=" in own else ())]
    return found


def bash(found: Mapping[str, Sequence[str]]) -> str:
    """A script for bash that completes commands, and the words [command -> words] of each."""
    cases = "\n".join(f"    {name}) words='{' '.join(some)}' ;;" for name, some in found.items())
    return f"""# Completion of transfusion in bash.
_transfusion() {{
  local line=${{COMP_LINE:0:COMP_POINT}} word words
  word=${{line##* }}
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(found)}' -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # Bash takes '=' and ':' as ends of words: what stands before the last of them is on the line already.
  local begun=${{word%"${{word##*[=:]}}"}}
  COMPREPLY=("${{COMPREPLY[@]#"$begun"}}")
  [ ${{#COMPREPLY[@]}} -eq 0 ] && COMPREPLY=($(compgen -f -- "${{word##*=}}"))
  case ${{COMPREPLY[0]}} in *=) compopt -o nospace ;; esac
}}
complete -o filenames -F _transfusion transfusion"""


def zsh(found: Mapping[str, Sequence[str]]) -> str:
    """The same for zsh."""
    cases = "\n".join(f"    {name}) words_of=({' '.join(map(_quoted, some))}) ;;" for name, some in found.items())
    names = " ".join(_quoted(f"{name}:{COMMANDS[name].help}") for name in found)
    return f"""#compdef transfusion
_transfusion() {{
  local -a commands words_of
  commands=({names})
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case $words[2] in
{cases}
  esac
  compadd -S '' -- $words_of || _files
}}
compdef _transfusion transfusion"""


def fish(found: Mapping[str, Sequence[str]]) -> str:
    """The same for fish."""
    lines = ["# Completion of transfusion in fish."]
    for name, some in found.items():
        lines.append(f"complete -c transfusion -n __fish_use_subcommand -a {name} -d {_quoted(COMMANDS[name].help)}")
        seen = _quoted(f"__fish_seen_subcommand_from {name}")
        lines.append(f"complete -c transfusion -n {seen} -a {_quoted(' '.join(some))}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A word for zsh and fish, in which a quotation mark ends what it began."""
    return "'" + text.replace("'", "") + "'"


SHELLS: dict[str, Callable[[Mapping[str, Sequence[str]]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
# The words of commands that are no flags.
FIRST = {"config": tuple(ACTIONS), "completion": tuple(SHELLS)}


def main(argv: Sequence[str]) -> None:
    shell = argv[1] if len(argv) > 1 else ""
    if shell not in SHELLS:
        raise UsageError(f"name a shell: {', '.join(SHELLS)}, not {shell!r}{nearest(shell, SHELLS)}")
    programs.say(SHELLS[shell](words()))


if __name__ == "__main__":
    programs.run(main, files=1)
