"""Where the fields of earlier experiments are now, so that config.json and checkpoints of runs made before still load.

Only `from_json` reads this. Config files and flags have today's names alone.
"""

import fnmatch
from typing import Any

# Table -> field that it had -> the field that has its value now, counted from the table. '*' stands for one name.
MOVED: dict[str, dict[str, str]] = {
    "streams.*": {
        "time_embedding": "released.time",
        "condition": "released.condition",
        "pooled": "released.pooled",
        "out_channels": "released.out_channels",
        "tied": "released.tied",
        "table_grid": "released.table_grid",
    },
    **dict.fromkeys(
        ("model", "model.stages.*.trunk"),
        {
            "ffn_norm_epsilon": "released.ffn_norm_epsilon",
            "qk_norm_absent": "released.qk_norm_absent",
            "rope_sections": "released.rope_sections",
            "rope_scaling": "released.rope_scaling",
            "dual_layers": "released.dual_layers",
            "dual_expert": "released.dual_expert",
        },
    ),
}
# Table -> field -> a value that it had -> the fields that say the same now.
SAID: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "streams.*": {
        "table": {
            "centred": {"table": "learned", "released.centred": True},
            "sincos_xy": {"table": "sincos", "released.x_first": True},
        },
    },
}


def today(config: Any) -> Any:
    """Gives a parsed config the fields of today, in place, and returns it. What is no table of fields where one should
    be is left as it is, for whoever reads the config to refuse."""
    for pattern in {**MOVED, **SAID}:
        for table in _tables(config, pattern.split(".")):
            for field, to in MOVED.get(pattern, {}).items():
                if field in table:
                    _put(table, to, table.pop(field))
            for field, values in SAID.get(pattern, {}).items():
                value = table.get(field)
                for to, now in values.get(value, {}).items() if isinstance(value, str) else ():
                    _put(table, to, now)
    return config


def _tables(config: Any, names: list[str]) -> list[dict[str, Any]]:
    """The tables that lie at a pattern."""
    if not isinstance(config, dict):
        return []
    if not names:
        return [config]
    inside = [config[name] for name in config if fnmatch.fnmatchcase(name, names[0])]
    return [table for part in inside for table in _tables(part, names[1:])]


def _put(table: dict[str, Any], field: str, value: Any) -> None:
    *above, last = field.split(".")
    for name in above:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return
    table[last] = value
