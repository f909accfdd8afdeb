"""The schema of an experiment: `experiment` (its fields and their conversions), `ranges` (legal values), `earlier`
(fields that have moved), `explain` (what is wrong with a config that a command line gave), `json_file` (a written
config as a config file).
"""

from transfusion.config.experiment import (
    EvalConfig,
    Experiment,
    check_form,
    checked,
    debug_form,
    from_config,
    from_json,
    to_config_dict,
    to_json,
)

__all__ = [
    "EvalConfig",
    "Experiment",
    "check_form",
    "checked",
    "debug_form",
    "from_config",
    "from_json",
    "to_config_dict",
    "to_json",
]
