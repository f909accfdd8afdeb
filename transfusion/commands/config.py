"""Prints, compares or checks configs.

  transfusion config print digits --config.steps=2000      # every field with its value, as flags would set it
  transfusion config print digits --changed                # only the fields that differ from the defaults
  transfusion config print digits --json > mine.json       # as a workdir holds it
  transfusion config diff digits digits:unet               # two configs, or the folders of two runs
  transfusion config check my_config.py                    # builds the model's shapes and reads the first rows
  transfusion config list                                  # the configs of the library

CONFIG is the name of a config of the library, a config file (':form' may follow), or the folder of a run.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from transfusion import programs
from transfusion.config import Experiment, to_json
from transfusion.config.named import first_sentence, shipped
from transfusion.errors import UsageError, nearest
from transfusion.planning import forecast
from transfusion.workdir import json_file
from transfusion.workdir.changes import differences
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.portable import CONFIG


def experiment_of(name: str) -> Experiment:
    """The experiment of a config, or of a run's folder."""
    if not os.path.isdir(name):
        return programs.load_experiment(name)
    if not (pathlib.Path(name) / CONFIG).is_file():
        raise UsageError(f"{name} is a folder without {CONFIG}: give a config, or the folder of a run")
    return read_experiment(name)


def as_flag(argv: Sequence[str]) -> list[str]:
    """A command line in which the one config that it names is the flag --config, so that flags can set its fields."""
    action, names = argv[1:2], [i for i, word in enumerate(argv) if i > 1 and not word.startswith("-")]
    if not action or ACTIONS.get(action[0]) != 1 or len(names) != 1:
        return list(argv)
    name = argv[names[0]]
    if os.path.isdir(name):
        name = f"{json_file.__file__}:{pathlib.Path(name) / CONFIG}"
    return [*argv[: names[0]], f"--config={name}", *argv[names[0] + 1 :]]


def lines_of(experiment: Experiment, changed: bool = False) -> Iterator[str]:
    """Yields 'field = value' for each field; with `changed`, only for those that differ from the defaults."""
    for field, value, default in _leaves("", experiment, Experiment()):
        if not changed or value != default:
            yield f"{field} = {json.dumps(value)}"


def _leaves(where: str, value: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields (field, value, default). The default of a table's entry is an entry in which nothing is set."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            other = _default(field) if default is None else getattr(default, field.name)
            yield from _leaves(f"{where}.{field.name}".lstrip("."), getattr(value, field.name), other)
    elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
        for name, entry in value.items():
            yield from _leaves(f"{where}.{name}", entry, None)
    elif isinstance(value, dict) and any(isinstance(entry, tuple) for entry in value.values()):
        for name, entries in value.items():
            for i, entry in enumerate(entries):
                yield from _leaves(f"{where}.{name}[{i}]", entry, None)
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for i, entry in enumerate(value):
            yield from _leaves(f"{where}[{i}]", entry, None)
    else:
        yield where, value, default


def _default(field: dataclasses.Field) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def main(argv: Sequence[str]) -> None:
    action, *names = argv[1:] or [""]
    if action not in ACTIONS:
        raise UsageError(f"give one of {', '.join(ACTIONS)}, not {action!r}{nearest(action, ACTIONS)}")
    wanted = ACTIONS[action]
    if len(names) + (FLAGS.config is not None) != wanted:
        raise UsageError(f"config {action} takes {wanted} config{'s' * (wanted != 1)}, as --help shows")
    if action == "list":
        width = max(map(len, shipped()))
        programs.say("\n".join(f"{name:<{width}}  {first_sentence(path)}" for name, path in shipped().items()))
    elif action == "print":
        experiment = programs.experiment_of(FLAGS.config)
        programs.say(to_json(experiment) if FLAGS.json else "\n".join(lines_of(experiment, FLAGS.changed)))
    elif action == "diff":
        programs.say("\n".join(map(str, differences(*map(experiment_of, names)))) or "no field differs")
    else:
        print(forecast.text(forecast.forecast(programs.experiment_of(FLAGS.config))))
        print("this config can be trained")


# How many configs each action takes.
ACTIONS = {"print": 1, "diff": 2, "check": 1, "list": 0}
FLAGS = flags.FLAGS

if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config; its name alone will do.")
    flags.DEFINE_bool("changed", False, "Print only the fields that differ from the defaults.")
    flags.DEFINE_bool("json", False, "Print JSON, as a workdir holds it.")
    sys.argv = as_flag(sys.argv)
    programs.run(main, files=None)
