"""Checks before the first step that training and held-out data can be used."""

from collections.abc import Callable, Mapping, Sequence

from absl import logging

from transfusion.data.config import HELD_OUT, DataConfig, Record, SourceConfig
from transfusion.data.packing import Bad
from transfusion.data.sources import Source, open_source
from transfusion.errors import UsageError

MOST_TRIED = 1000  # records of a source of which one must be usable


def check_data(
    data: DataConfig,
    opened: Mapping[str, Source],
    example: Callable[[Record], object],
    held_out: Mapping[str, SourceConfig],
    evaluates: bool,
) -> None:
    """Refuses sources without a usable record, so that a run ends at its start and not at its first evaluation.

    Records of each source are made into examples until one is usable. Held-out sources are refused if training
    evaluates on them. If only a later program will, a line of the log says what is wrong with them.

    Args:
      data: the settings of the data.
      opened: the training sources.
      example: makes a record what the task reads, or a Bad.
      held_out: the sources of `eval.sources`.
      evaluates: whether training evaluates on them.

    Raises:
      UsageError: naming the source and its first record.
    """
    for name, source in opened.items():
        check_usable(f"data.sources.{name}", source, example)
    for name, source in held_out.items():
        where = f"eval.sources.{name}"
        try:
            source.validate(where, data.pixel_limit)
            _check_apart(where, source, data)
            check_usable(where, _open(where, source, data), example)
        except UsageError as error:
            if evaluates:
                raise
            logging.warning("the held-out data cannot be used: %s", error)


def check_usable(where: str, source: Sequence[Record], example: Callable[[Record], object]) -> None:
    """Refuses a source without a usable record among `MOST_TRIED` evenly spaced ones (all records of a smaller source).

    Raises:
      UsageError: with the first record and what is wrong with it.
    """
    count, first = min(len(source), MOST_TRIED), None
    for number in range(count):
        made = example(source[number * len(source) // count])
        if not isinstance(made, Bad):
            return
        first = first or made
    if first is None:
        raise UsageError(f"{where} holds no records")
    tried = f"its {count} records" if count == len(source) else f"{count} records tried"
    raise UsageError(f"{where}: none of {tried} can be used. The first: {first.name}: {first.error}")


def _open(where: str, config: SourceConfig, data: DataConfig) -> Source:
    try:
        return open_source(config, data.data_dir, data.pixel_limit)
    except UsageError as error:
        raise type(error)(f"{where}: {error}") from error


def _check_apart(where: str, held_out: SourceConfig, data: DataConfig) -> None:
    """Refuses a held-out source if training reads some of its records, because the two `hold_out` shares differ."""
    if held_out.part != HELD_OUT:
        return
    for name, source in data.sources.items():
        same = all(getattr(source, f) == getattr(held_out, f) for f in ("kind", "name", "path", "split", "captions"))
        if same and (source.part == HELD_OUT or source.hold_out < held_out.hold_out):
            raise UsageError(
                f"{where} holds out records that data.sources.{name} trains on: "
                f"set data.sources.{name}.hold_out={held_out.hold_out} and part='train'"
            )
