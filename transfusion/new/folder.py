"""Looks at a folder of images: which there are, how large they are, in which colours, and where their captions are."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from transfusion.data import images
from transfusion.data.config import SourceConfig
from transfusion.data.tables import read_text_table
from transfusion.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff", ".tif")
MEASURED, DECODED = 2000, 100  # images whose header is read, and that are decoded: enough for a choice of sizes
_FILES = ("file_name", "image", "file", "filename", "image_path", "path", "img")
_CAPTIONS = ("caption", "text", "prompt", "description", "title", "label")
_TABLES = (".csv", ".jsonl")
MOST_CLASSES = 200
_CAMERA = re.compile(
    r"(img|dsc|dscn|dcim|image|photo|picture|pic|scan|screenshot|frame|sample|untitled)s?", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
      folder: where it is, absolute.
      how: where the captions come from, in words.
      source: reads the folder; without sizes. Where its `captions` are '', they are in no table that it could read.
      captions: file and caption of each image that can be read; '' for none.
      sizes: heights and widths of the first images [n, 2].
      grey: whether no image has a colour.
      unreadable: images among the first that cannot be read, with what is wrong.
    """

    folder: str
    how: str
    source: SourceConfig
    captions: tuple[tuple[str, str], ...]
    sizes: np.ndarray
    grey: bool
    unreadable: tuple[str, ...]


def look(folder: str | os.PathLike) -> Found:
    """Looks at a folder of images.

    Captions come from the first of these that is there: a table (captions.csv, metadata.jsonl or another .csv or .jsonl
    with a column of files), a .txt beside each image, the names of the folders that hold the images, the names of the
    images. A table whose columns are the usual ones is read in place.

    Raises:
      UsageError: if it is no folder, or holds no image.
    """
    path = pathlib.Path(folder).resolve()
    if not path.is_dir():
        raise UsageError(f"--images={folder} is no folder: give a folder of images")
    names = _images(path)
    if not names:
        raise UsageError(f"{folder} holds no images: their names end in {', '.join(SUFFIXES)}")
    source, captions, how = _captioned(path, names)
    sizes, grey, unreadable = _measured(path, [name for name, _ in captions])
    if not len(sizes):
        raise UsageError(f"no image in {folder} can be read: {next(iter(unreadable.values()))}")
    kept = tuple(row for row in captions if row[0] not in unreadable)
    return Found(str(path), how, source, kept, sizes, grey, tuple(f"{name}: {e}" for name, e in unreadable.items()))


def _images(path: pathlib.Path) -> list[str]:
    """The images in a folder and below it, sorted; hidden folders are left out."""
    found = []
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        kept = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found += [os.path.relpath(os.path.join(folder, name), path) for name in kept]
    return sorted(found)


# --- captions ---------------------------------------------------------------------------------------------------------


def _captioned(path: pathlib.Path, names: Sequence[str]) -> tuple[SourceConfig, list[tuple[str, str]], str]:
    """The source of the images, their captions, and in words where these are from."""
    for table in _tables(path):
        columns = _columns(table)
        file = next((name for name in _FILES if name in columns), "")
        caption = next((name for name in _CAPTIONS if name in columns), "")
        if file:
            source = SourceConfig(
                kind="folder", path=str(path), captions=table.name, file_field=file, caption_field=caption
            )
            said = f"column {caption!r} of {table.name}" if caption else f"none: {table.name} has no column of captions"
            if rows := _of_table(source):
                return source, rows, said
    plain = SourceConfig(kind="folder", path=str(path))
    for captions, how in (_beside(path, names), _of_folders(names), _of_names(names)):
        if captions:
            return plain, captions, how
    return dataclasses.replace(plain, caption_field=""), [(name, "") for name in names], "none"


def _tables(path: pathlib.Path) -> list[pathlib.Path]:
    """The tables of a folder, those with the usual names first."""
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _TABLES and file.is_file()]
    return sorted(found, key=lambda file: file.stem not in ("captions", "metadata"))


def _columns(table: pathlib.Path) -> list[str]:
    """The columns of a table, from its first row; [] if there is none."""
    with open(table, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(2**16)
    try:
        if table.suffix.lower() == ".csv":
            return next(csv.reader(io.StringIO(line)), [])
        row = json.loads(line)
        return list(row) if isinstance(row, dict) else []
    except (ValueError, csv.Error):
        return []


def _of_table(source: SourceConfig) -> list[tuple[str, str]]:
    """The files and captions of a table."""
    table = read_text_table(os.path.join(source.path, source.captions), source.file_field, source.caption_field)
    rows = (table[i] for i in range(len(table)))
    return [(row.name, str(row.caption or "")) for row in rows if row.name and not row.error]


def _beside(path: pathlib.Path, names: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """Captions from a .txt (or .caption) of the same name beside at least half of the images."""
    found = []
    for name in names:
        texts = ((path / name).with_suffix(suffix) for suffix in (".txt", ".caption"))
        text = next((file for file in texts if file.is_file()), None)
        if text is not None:
            found.append((name, " ".join(text.read_text("utf-8", errors="replace").split())))
    left_out = f", {len(names) - len(found)} images without one are left out" if len(found) < len(names) else ""
    return (found, f"a .txt beside each image{left_out}") if 2 * len(found) >= len(names) else ([], "")


def _of_folders(names: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """Captions from the folders of the images, if there are several and they are no mere numbers."""
    folders = Counter(os.path.basename(os.path.dirname(name)) for name in names)
    if "" in folders or not 2 <= len(folders) <= MOST_CLASSES or not any(map(_is_word, folders)):
        return [], ""
    captions = [(name, _spaced(os.path.basename(os.path.dirname(name)))) for name in names]
    return captions, f"the names of {len(folders)} folders"


def _of_names(names: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """Captions from the names of the images, if most of them have words that a person chose."""
    captions = [(name, _spaced(pathlib.Path(name).stem)) for name in names]
    worded = [caption for _, caption in captions if any(map(_is_word, caption.split()))]
    return (captions, "the names of the images") if 2 * len(worded) > len(names) else ([], "")


def _spaced(name: str) -> str:
    """A name as words: 'blue_penguin-03' is 'blue penguin'."""
    words = re.sub(r"[_\W]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).split()
    while len(words) > 1 and words[-1].isdecimal():
        words.pop()
    return " ".join(words)


def _is_word(text: str) -> bool:
    """Whether a person chose this: letters with a vowel, and no name that cameras give."""
    return (
        bool(re.search(r"[^\W\d_]{3}", text))
        and bool(re.search("[aeiouy]", text, re.IGNORECASE))
        and not (_CAMERA.fullmatch(re.sub(r"[\d\W_]", "", text)))
    )


# --- images -----------------------------------------------------------------------------------------------------------


def _measured(path: pathlib.Path, names: Sequence[str]) -> tuple[np.ndarray, bool, dict[str, str]]:
    """Heights and widths [n, 2] of the first images, spread over all; whether all are grey; what cannot be read, and
    why."""
    sizes, unreadable, coloured = [], {}, False
    chosen = [names[i * len(names) // min(len(names), MEASURED)] for i in range(min(len(names), MEASURED))]
    every = max(1, len(chosen) // DECODED)
    for i, name in enumerate(chosen):
        try:
            data = (path / name).read_bytes()
            if i % every or coloured:
                opened = images.open_image(data)
                sizes.append((opened.height, opened.width))
            else:
                array = images.decode(data)
                sizes.append(array.shape[:2])
                coloured = array.shape[2] == 3 and bool((array != array[..., :1]).any())
        except (OSError, ValueError) as error:
            unreadable[name] = str(error)
    return np.array(sizes).reshape(-1, 2), not coloured, unreadable
