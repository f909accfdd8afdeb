"""The table of data sets that `transfusion.prepare` can write, and the writing itself.

Their TFDS builders are in `transfusion.data.packaged`. Files are written as ArrayRecord, which gives random access.
Data sets of records with segments are folders of plain files, which a source of the kind 'records' reads.
"""

import contextlib
import io
import os
import pathlib
import shutil
from collections.abc import Callable

import tensorflow_datasets as tfds
from absl import logging

from transfusion.data.packaged import omni_digits
from transfusion.data.packaged.animations import Animations
from transfusion.data.packaged.digits import Digits, SizedDigits
from transfusion.data.packaged.emoji import Emoji
from transfusion.data.packaged.scenes import Scenes
from transfusion.data.packaged.speech import Speech
from transfusion.data.packaged.stdlib_text import StdlibText
from transfusion.errors import UsageError, nearest
from transfusion.storage import lasting

BUILDERS = {
    "digits": Digits,
    "sized_digits": SizedDigits,
    "emoji": Emoji,
    "text": StdlibText,
    "speech": Speech,
    "animations": Animations,
    "scenes": Scenes,
}

# Data sets of records with segments: name -> what writes their files into a new folder.
FOLDERS: dict[str, Callable[[pathlib.Path], None]] = {"omni_digits": omni_digits.write}


def write(name: str, data_dir: str) -> str:
    """Writes the dataset `name` below `data_dir`, if it is not there yet. Returns how many records its parts have.

    Raises:
      UsageError: for an unknown name or config, a missing package, font or file.
    """
    if name in FOLDERS:
        folder = write_folder(name, data_dir)
        parts = {path.stem: sum(1 for _ in path.open("rb")) for path in folder.glob("*.jsonl")}
    else:
        builder = prepare(name, data_dir)
        folder, parts = builder.data_dir, {part: info.num_examples for part, info in builder.info.splits.items()}
    return f"{', '.join(f'{part}: {count}' for part, count in sorted(parts.items()))} in {folder}"


def write_folder(name: str, data_dir: str) -> pathlib.Path:
    """Writes the folder of a dataset of `FOLDERS`, which appears when it is complete.

    Raises:
      UsageError: if a package or file is missing.
    """
    folder = pathlib.Path(data_dir) / name
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        FOLDERS[name](temporary)
        os.replace(temporary, folder)
    except OSError as error:
        raise lasting(f"cannot write {folder}", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def prepare(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Writes the dataset `name` ('digits', or with a config 'emoji/24') below `data_dir`, if it is not there yet.

    Raises:
      UsageError: for an unknown name or config, a missing package or font.
    """
    builder_class, config = resolve(name)
    builder = builder_class(data_dir=data_dir, config=config, file_format="array_record")
    return write_files(builder)


def resolve(name: str) -> tuple[type[tfds.core.GeneratorBasedBuilder], str | None]:
    """Returns the builder class of 'emoji/24' and its config ('24'; None where the class has none).

    Raises:
      UsageError: for an unknown name or config.
    """
    name, _, config = name.partition("/")
    if name not in BUILDERS:
        known = (*BUILDERS, *FOLDERS)
        raise UsageError(f"unknown dataset {name!r}{nearest(name, known)}: choose from {', '.join(known)}")
    configs = [c.name for c in BUILDERS[name].BUILDER_CONFIGS]
    if config and config not in configs:
        choice = f"choose from {', '.join(configs)}" if configs else "it has no configs"
        raise UsageError(f"dataset {name!r} has no config {config!r}{nearest(config, configs)}: {choice}")
    return BUILDERS[name], config or (configs[0] if configs else None)


def write_files(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Writes the files of `builder`, if they are not there yet, without asking the network for anything."""
    tfds.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what `prepare` says in one line
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
                )
            )
    finally:
        logging.set_verbosity(level)
    return builder
