"""A config file that reads an experiment from JSON.

Use it as `--config transfusion/workdir/json_file.py:runs/digits/config.json`.
"""

import pathlib

from transfusion.config import to_config_dict
from transfusion.errors import UsageError
from transfusion.workdir.config_file import read_config_file


def get_config(path: str = ""):
    """The experiment in the file `path`, such as a workdir's config.json."""
    if not path or not pathlib.Path(path).is_file():
        raise UsageError(f"no experiment in {path!r}: give the path of a JSON file after the colon")
    return to_config_dict(read_config_file(path))
