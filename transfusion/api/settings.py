"""The settings of the sampler as flags of programs, such as --guidance=2."""

import dataclasses

from absl import flags

from transfusion.config.describe import documented
from transfusion.sampling.config import SamplerConfig

_FLAG = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}  # by the type of a setting


def define_settings() -> None:
    """A flag for each number and word of SamplerConfig, with what the class says of it."""
    _, meanings = documented(SamplerConfig)
    for field in dataclasses.fields(SamplerConfig):
        if field.type in _FLAG:
            meaning = meanings.get(field.name, "").rstrip(".")
            _FLAG[field.type](field.name, None, f"{meaning}. Default: the config's sampling.{field.name}.")


def settings_given() -> dict[str, str | int | float]:
    """The settings that flags give.

    Raises:
      UsageError: if one cannot work; nothing is loaded yet.
    """
    fields = (field.name for field in dataclasses.fields(SamplerConfig) if field.type in _FLAG)
    given = {name: getattr(flags.FLAGS, name) for name in fields}
    settings = {name: value for name, value in given.items() if value is not None}
    SamplerConfig(**settings)
    return settings
