"""The words of a sweep file: many members in a line each.

from transfusion.sweep import grid, seeds

def get_sweep():
    return seeds(3, grid("configs/digits.py", {"model.width": (64, 128), "optim.learning_rate": (1e-3, 2e-3)}))
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion.errors import UsageError

Entry = tuple[str, Any, dict[str, Any]]
"""A member: its name, its config or config file, and the fields in which it differs."""


@dataclasses.dataclass(frozen=True)
class RunOf:
    """The run of another member, as the value of a path, such as `{"codec.path": RunOf("vq_digits")}`.

    The other member is run first.
    """

    member: str


def grid(
    config: Any, axes: Mapping[str | tuple[str, ...], Sequence], changes: Mapping[str, Any] = {}, name: str = ""
) -> list[Entry]:
    """All combinations of the values of some fields.

    Args:
      config: a config file, with ':form' if it has one, or a config.
      axes: {field: values}. Fields that change together are one axis: {("model.width", "model.heads"): ((64, 1),
        (128, 2))}.
      changes: fields that all of the members set.
      name: what the members' names begin with; the rest is the value of each axis, as in 'width_64-heads_2'.

    Raises:
      UsageError: if the values of an axis do not fit its fields.
    """
    entries = []
    for values in itertools.product(*axes.values()):
        fields, parts = dict(changes), [name] if name else []
        for axis, value in zip(axes, values, strict=True):
            together, given = (axis, value) if isinstance(axis, tuple) else ((axis,), (value,))
            if not isinstance(given, Sequence) or len(given) != len(together):
                raise UsageError(f"grid: {given!r} must have a value for each of {', '.join(together)}")
            fields |= dict(zip(together, given, strict=True))
            parts.append(f"{together[0].rpartition('.')[2]}_{_plain(given[0])}")
        entries.append(("-".join(parts), config, fields))
    return entries


def _plain(value: Any) -> str:
    """The value as a part of a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_") or "none"


def seeds(count: int, entries: Sequence[Entry] | Mapping[str, Any], first: int = 0) -> list[Entry]:
    """Each of the entries with `count` seeds, of names that end in '-seed_0', '-seed_1', ...

    Runs of entries that others begin with (`RunOf`) are of the same seed.
    """
    if isinstance(entries, Mapping):
        entries = [(name, config, {}) for name, config in entries.items()]
    names = {name for name, *_ in entries}

    def seeded(value: Any, seed: int) -> Any:
        own = isinstance(value, RunOf) and value.member in names
        return RunOf(f"{value.member}-seed_{seed}") if own else value

    return [
        (f"{name}-seed_{seed}", config, {k: seeded(v, seed) for k, v in changes.items()} | {"seed": seed})
        for name, config, changes in entries
        for seed in range(first, first + count)
    ]
