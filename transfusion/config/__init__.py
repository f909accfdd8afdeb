"""The schema of an experiment, which this package hands on.

`experiment` has the fields, and their way from and to files and flags; `looks` has those of what is measured in
between; `ranges` has the numbers that each field may have; `earlier` moves fields of older files to where they are
now; `explain` finds what is wrong with the config of a command line; `describe` says what each field means, and `help`
prints it with --help; `named` finds the configs that come with the library; `override` sets fields from Python;
`brief` says in a few lines what an experiment is.
"""

from transfusion.config.experiment import (
    Experiment,
    check_form,
    checked,
    debug_form,
    from_config,
    from_json,
    to_config_dict,
    to_json,
)
from transfusion.config.looks import EvalConfig

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
