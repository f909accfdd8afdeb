"""Writes data sets as ArrayRecord files, which training reads at random.

python -m transfusion.prepare --data_dir data digits emoji text        # those that need no download
python -m transfusion.prepare --data_dir data --records rows.jsonl --reader llava mine    # your records, as data/mine
"""

import sys

from absl import app, flags

from transfusion import programs
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.record_writer import write_records
from transfusion.errors import UsageError, require

_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder that receives the datasets.")
_RECORDS = flags.DEFINE_string("records", None, "File, pattern or folder of records, written under the name given.")
_READER = flags.DEFINE_string("reader", "", "Their public form, such as llava; default: records with segments.")
_FILES = flags.DEFINE_string("files", "", "Folder of the files that they name; default: that of the records.")


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(names: list[str]) -> None:
    try:
        (write_datasets if _RECORDS.value is None else _write_records)(names)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def write_datasets(names: list[str]) -> None:
    """Writes the datasets with these names, which `transfusion.data.builders` knows."""
    require("tensorflow_datasets", "demo")
    from transfusion.data import builders  # here, as they are written with TFDS, which is an extra

    if not names:
        raise UsageError(f"name the datasets to prepare: {', '.join((*builders.BUILDERS, *builders.FOLDERS))}")
    for name in names:
        print(f"{name}: {builders.write(name, _DATA_DIR.value)}")


def _write_records(names: list[str]) -> None:
    """Writes a source of the kind 'records' as DATA_DIR/NAME; says each record that is left out, and why."""
    if len(names) != 1 or not names[0].strip() or "/" in names[0]:
        raise UsageError("give one name for the records: --records rows.jsonl NAME")
    config = SourceConfig(kind="records", path=_RECORDS.value, reader=_READER.value, files=_FILES.value)
    bad: list[str] = []

    def on_bad(line: str) -> None:
        bad.append(line)
        print(f"left out {line}", file=sys.stderr)

    folder = f"{_DATA_DIR.value}/{names[0]}"
    count = write_records(config, folder, DataConfig().pixel_limit, on_bad)
    left_out = f", {len(bad)} left out" if bad else ""
    print(f"{names[0]}: {count} records{left_out} in {folder}")


if __name__ == "__main__":
    programs.packages_first()
    app.run(lambda argv: main(argv[1:]), flags_parser=_parse)
