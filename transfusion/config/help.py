"""What --help prints: what a program does, its flags in groups, and the fields of its config with their meaning."""

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from transfusion.config.describe import Section, sections
from transfusion.config.experiment import Experiment

WIDTH = 112
_INDENT = 28
_ASKS, _FULL = ("help", "h", "?", "helpshort"), "helpfull"
# The title of the flags that a module of the library defines for programs.
_TITLES = {
    "transfusion.api.settings": "How the model writes and draws",
    "transfusion.running.distributed": "Several processes",
    "transfusion.running.supervise": "Supervision, which starts a training again that dies or hangs",
}


def asked(argv: Sequence[str]) -> str:
    """Which help a command line asks for: 'help' or 'helpfull'; '' for none."""
    given = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    return _FULL if _FULL in given else "help" if given & {*_ASKS} else ""


def help_text(doc: str, config: Any = None, full: bool = False) -> str:
    """The help of a program.

    Args:
      doc: the docstring of the program.
      config: the ConfigDict that the command line names, whose values are shown; None: the defaults are.
      full: adds the flags of other libraries.
    """
    ours, others = own_flags(), []
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module not in ours:
            others += found
    parts = [doc.strip()]
    main = [flag for module, found in ours.items() if module not in _TITLES for flag in found]
    parts += [_group("Flags", main)] * bool(main)
    parts += [_group(title, ours[module]) for module, title in _TITLES.items() if module in ours]
    if "config" in flags.FLAGS:
        parts.append(fields_text(config))
    if full:
        parts.append(_group("Flags of other libraries", sorted(others, key=lambda flag: flag.name)))
    else:
        parts.append("--helpfull lists the flags of other libraries, too.")
    return "\n\n".join(parts)


def own_flags() -> dict[str, list[flags.Flag]]:
    """The flags that the running program and modules of this library have defined, by module."""
    known = flags.FLAGS.flags_by_module_dict()
    return {
        module: list(known[module]) for module in known if module == sys.argv[0] or module.startswith("transfusion.")
    }


def _group(title: str, found: Sequence[flags.Flag]) -> str:
    hidden = {*_ASKS, _FULL, "helpxml"}
    return "\n".join([f"{title}:", *(line for flag in found if flag.name not in hidden for line in _flag(flag))])


def _flag(flag: flags.Flag) -> Iterator[str]:
    """Yields the lines of a flag: how it is given, what it does, and its default."""
    given = f"--{flag.name}" if flag.boolean else f"--{flag.name}={_word(flag)}"
    default = "" if flag.default in (None, "", [], False) else f" Default: {flag.default}."
    several = ";\n    repeat this option to specify a list of values"  # said by absl, after our own words
    yield from _row(f"  {given}", f"{_sentence((flag.help or '').removesuffix(several))}{default}")


_WORDS = {"string": "TEXT", "multi string": "TEXT", "float": "NUMBER", "int": "N", "config object": "CONFIG"}


def _word(flag: flags.Flag) -> str:
    kind = flag.flag_type()
    return "|".join(flag.parser.enum_values) if hasattr(flag.parser, "enum_values") else _WORDS.get(kind, "LIST")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def _row(left: str, right: str) -> Iterator[str]:
    lines = textwrap.wrap(right, WIDTH - _INDENT, break_on_hyphens=False) or [""]
    if len(left) >= _INDENT:
        yield left
    else:
        lines[0] = left.ljust(_INDENT) + lines[0]
        yield lines[0].rstrip()
        lines = lines[1:]
    yield from (" " * _INDENT + line for line in lines if line)


# --- the fields of a config -------------------------------------------------------------------------------------------


def fields_text(config: Any = None) -> str:
    """All fields of a config, with the values of `config` (a ConfigDict) or their defaults, and what they mean.

    NAME stands for the name of a stream, a source and so on; where `config` has such names, the fields are shown once,
    with their defaults.
    """
    whose = "their defaults" if config is None else "the values of this config"
    lines = [
        f"Fields of a config, with {whose}. A flag --config.FIELD=VALUE replaces the value of any of them, as in",
        "--config.optim.learning_rate=0.001; NAME is the name of a stream, a source and so on.",
    ]
    for section in sections(Experiment):
        lines += ["", *_section(section, config)]
    return "\n".join(lines)


def _section(section: Section, config: Any) -> Iterator[str]:
    said = _sentence(section.says.partition("\n\n")[0])
    yield from textwrap.wrap(f"{section.path or 'config'}: {said}", WIDTH, break_on_hyphens=False)
    prefix, values = f"{section.path}." if section.path else "", _at(config, section.path)
    for field in section.fields:
        value = field.default if values is None or field.name not in values else repr(values[field.name])
        inner = field.default.endswith("()") or field.type.startswith(("dict", "tuple[Run"))
        shown = "" if inner or len(value) > 60 else f"={value}"
        yield from _row(f"  {prefix}{field.name}{shown}", _sentence(field.meaning))


def _at(config: Any, path: str) -> Mapping[str, Any] | None:
    """What a config has at a path; None where that is not one place."""
    node = config
    for name in path.split(".") if path and node is not None else ():
        node = node.get(name)
        if node is None:
            return None
    return node
