"""The schema of an experiment, which this package hands on.

`experiment` has the fields, and their way from and to files and flags; `ranges` has the numbers that each field may
have; `earlier` moves fields of older files to where they are now; `explain` finds what is wrong with the config of a
command line; `describe` says what each field means, and `help` prints it with --help; `named` finds the configs that
come with the library; `override` sets fields from Python; `brief` says in a few lines what an experiment is.
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
