"""Writes the datasets that need no download: `python -m transfusion.prepare --data_dir data digits emoji text`."""

import sys

from absl import app, flags

from transfusion import programs
from transfusion.errors import UsageError, require

_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder that receives the datasets.")


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(names: list[str]) -> None:
    try:
        require("tensorflow_datasets", "demo")
        from transfusion.data import builders  # here, as they are written with TFDS, which is an extra

        if not names:
            raise UsageError(f"name the datasets to prepare: {', '.join(builders.BUILDERS)}")
        for name in names:
            builder = builders.prepare(name, _DATA_DIR.value)
            counts = ", ".join(f"{split}: {info.num_examples}" for split, info in sorted(builder.info.splits.items()))
            print(f"{name}: {counts} in {builder.data_dir}")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    programs.packages_first()
    app.run(lambda argv: main(argv[1:]), flags_parser=_parse)
