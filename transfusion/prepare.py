"""Writes data sets as ArrayRecord files, which training reads at random.

python -m transfusion.prepare --data_dir data digits emoji text        # those that need no download
python -m transfusion.prepare --data_dir data --records rows.jsonl --reader llava mine    # your records, as data/mine
"""

import sys
from collections.abc import Sequence

from absl import flags

from transfusion import programs
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.record_writer import write_records
from transfusion.errors import UsageError, require


def main(argv: Sequence[str]) -> None:
    (write_datasets if FLAGS.records is None else _write_records)(argv[1:])


def write_datasets(names: Sequence[str]) -> None:
    """Writes the datasets with these names, which `transfusion.data.builders` knows."""
    require("tensorflow_datasets", "demo")
    from transfusion.data import builders  # here, as they are written with TFDS, which is an extra

    if not names:
        raise UsageError(f"name the datasets to prepare: {', '.join((*builders.BUILDERS, *builders.FOLDERS))}")
    for name in names:
        print(f"{name}: {builders.write(name, FLAGS.data_dir)}")


def _write_records(names: Sequence[str]) -> None:
    """Writes a source of the kind 'records' as DATA_DIR/NAME; says each record that is left out, and why."""
    if len(names) != 1 or not names[0].strip() or "/" in names[0]:
        raise UsageError("give one name for the records: --records rows.jsonl NAME")
    config = SourceConfig(kind="records", path=FLAGS.records, reader=FLAGS.reader, files=FLAGS.files)
    bad: list[str] = []

    def on_bad(line: str) -> None:
        bad.append(line)
        print(f"left out {line}", file=sys.stderr)

    folder = f"{FLAGS.data_dir}/{names[0]}"
    count = write_records(config, folder, DataConfig().pixel_limit, on_bad)
    left_out = f", {len(bad)} left out" if bad else ""
    print(f"{names[0]}: {count} records{left_out} in {folder}")


def define_flags() -> None:
    flags.DEFINE_string("data_dir", "data", "Folder that receives the datasets.")
    flags.DEFINE_string("records", None, "File, pattern or folder of records, written under the name given.")
    flags.DEFINE_string("reader", "", "Their public form, such as llava; default: records with segments.")
    flags.DEFINE_string("files", "", "Folder of the files that they name; default: that of the records.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main, files=None)
