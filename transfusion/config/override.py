"""Sets fields of an experiment from Python, as flags set them on a command line."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from transfusion.config.experiment import Experiment, from_config
from transfusion.config.explain import walk
from transfusion.errors import UsageError


def with_fields(config: Experiment | Mapping[str, Any], changes: Mapping[str, Any]) -> Experiment:
    """The experiment with some fields replaced: {'optim.learning_rate': 1e-3, 'streams.image.budget': 64}.

    A value is a number, a text, a list or a table; a dataclass of the field's type will do, too.

    Raises:
      UsageError: if there is no such field, or the value cannot work.
    """
    tree = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    tree = ml_collections.ConfigDict(tree)
    for field, value in changes.items():
        path, _, last = field.rpartition(".")
        walk(tree, f"config.{field}")
        node = walk(tree, f"config.{path}") if path else tree
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        if isinstance(node, ml_collections.ConfigDict):
            with node.ignore_type():
                node[last] = value
        elif "[" in last:
            raise UsageError(f"{field}: set the whole list {field.rpartition('[')[0]!r}")
        else:
            node[last] = value
    return from_config(tree)
