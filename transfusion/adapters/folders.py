"""Folders of drawings for the public scorers of pictures: prompts in, pictures out under the names that each one reads.

A folder DIR holds `images/`, which the scorer is given, and beside it what `batches` keeps to go on. The layouts are
those that the scorers' own programs read:

- GenEval (djghosh13/geneval, evaluation/evaluate_images.py): `00000/metadata.jsonl`, one line of the prompts' file
  evaluation_metadata.jsonl, and `00000/samples/00000.png` to `00003.png`;
- DPG-Bench (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py): `ITEM.png`, of which the first `--pic-num` squares of
  side `--resolution` are read, left to right and top to bottom in two columns;
- WISE (PKU-YuanGroup/WISE, gpt_eval.py): `PROMPT_ID.png`;
- clean-fid (GaParmar/clean-fid): any pictures in any folders.
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.adapters.batches import ROWS, Batches, Result, work_through
from transfusion.adapters.lines import LARGEST, Line, read_lines
from transfusion.api import Trained
from transfusion.api.prompts import checked_text
from transfusion.data import images
from transfusion.errors import UsageError, shown

IMAGES = "images"


@dataclasses.dataclass(frozen=True)
class Asked:
    """One prompt of a benchmark: the name under which its scorer knows it, the text, and what GenEval keeps beside."""

    name: str
    text: str
    about: Any = None


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What a public scorer reads.

    Attributes:
      prompts: reads the benchmark's prompts from the path of their file or folder.
      number: pictures of a prompt.
      place: the path of a picture, without its suffix, from the name of its prompt and its own number.
      grid: whether all pictures of a prompt are joined to one.
      command: the scorer's command, with {images}, {folder}, {side} and {number}.
    """

    prompts: Callable[[pathlib.Path], list[Asked]]
    number: int
    place: Callable[[str, int], str]
    command: str
    grid: bool = False


def _bytes(path: pathlib.Path) -> bytes:
    try:
        return storage.read_bytes(path, LARGEST)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {shown(str(path))}: {getattr(error, 'strerror', None) or error}") from error


def _text(path: pathlib.Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown(str(path))} is no UTF-8 text") from error


def _json(where: str, data: bytes) -> Any:
    try:
        return storage.parse(data)
    except ValueError as error:
        raise UsageError(f"{where} is no JSON: {error}") from error


def _field(where: str, row: Any, name: str) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get(name), str | int) or isinstance(row.get(name), bool):
        raise UsageError(f"{where}: no field {name!r} with a text: is it this benchmark's file of prompts?")
    return row[name]


def geneval_prompts(path: pathlib.Path) -> list[Asked]:
    """Reads evaluation_metadata.jsonl. A prompt is named by its place among the lines."""
    found = []
    for place, row in enumerate(_bytes(path).split(b"\n"), 1):
        if row.strip():
            where = f"{shown(str(path))} line {place}"
            about = _json(where, row)
            _field(where, about, "tag")  # by which the scorer chooses its thresholds
            found.append(Asked(f"{len(found):05d}", str(_field(where, about, "prompt")), about))
    return found


def dpg_prompts(path: pathlib.Path) -> list[Asked]:
    """Reads a folder of ITEM.txt, or dpg_bench.csv, where an item has a row for each of its questions."""
    if path.is_dir():
        return [Asked(file.stem, _text(file).strip()) for file in sorted(path.glob("*.txt"))]
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    texts: dict[str, str] = {}
    for place, row in enumerate(rows, 2):
        texts.setdefault(*(str(_field(f"{shown(str(path))} line {place}", row, name)) for name in ("item_id", "text")))
    return [Asked(name, text) for name, text in texts.items()]


def wise_prompts(path: pathlib.Path) -> list[Asked]:
    """Reads a JSON file of WISE, or all those of a folder."""
    found = []
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        rows = _json(shown(str(file)), _bytes(file))
        for row in rows if isinstance(rows, list) else [rows]:
            where = shown(str(file))
            found.append(Asked(str(_field(where, row, "prompt_id")), str(_field(where, row, "Prompt"))))
    return found


def any_prompts(path: pathlib.Path) -> list[Asked]:
    """Reads a text file with a prompt per line, a file of prompts of `transfusion.adapters.lines`, or COCO's captions,
    of which the first of each picture is taken."""
    if path.suffix == ".json":
        rows = _json(shown(str(path)), _bytes(path))
        rows = rows.get("annotations", ()) if isinstance(rows, dict) else rows
        first: dict[str, str] = {}
        for row in rows:
            name = _field(shown(str(path)), row, "image_id")
            first.setdefault(
                f"{int(name):012d}" if str(name).isdecimal() else str(name), _field(str(path), row, "caption")
            )
        return [Asked(name, text) for name, text in first.items()]
    if path.suffix == ".jsonl":
        lines = read_lines(path)
        if wrong := [line for line in lines if line.task != "draw" or not all(isinstance(p, str) for p in line.parts)]:
            raise UsageError(f"{wrong[0].where}: a prompt of text is needed here")
        return [Asked(line.stem(0), "".join(map(str, line.parts))) for line in lines]
    texts = [line.strip() for line in _text(path).splitlines() if line.strip()]
    return [Asked(f"{number:06d}", text) for number, text in enumerate(texts)]


SCORERS: dict[str, Scorer] = {
    "geneval": Scorer(
        geneval_prompts, 4, "{}/samples/{:05d}".format,
        "python evaluation/evaluate_images.py {images} --outfile {folder}/geneval.jsonl --model-path MODELS && "
        "python evaluation/summary_scores.py {folder}/geneval.jsonl",
    ),
    "dpg": Scorer(
        dpg_prompts, 4, "{}/{}".format,
        "accelerate launch dpg_bench/compute_dpg_bench.py --image-root-path {images} --resolution {side} "
        "--pic-num {number} --csv dpg_bench/dpg_bench.csv --res-path {folder}/dpg.txt",
        grid=True,
    ),
    "wise": Scorer(
        wise_prompts, 1, "{}".format,
        "python gpt_eval.py --json_path data/cultural_common_sense.json --image_dir {images} --output_dir "
        "{folder}/wise --api_key KEY --model gpt-4o-2024-05-13 --result_full full.json --result_scores scores.jsonl",
    ),
    "cleanfid": Scorer(
        any_prompts, 1, "{}-{}".format,
        "python -c 'from cleanfid import fid; print(fid.compute_fid(\"{images}\", \"REAL\"))'",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Folder:
    """The drawings of one benchmark.

    Attributes:
      name: a key of `SCORERS`.
      asked: the benchmark's prompts.
      batches: the work.
    """

    name: str
    asked: Sequence[Asked]
    batches: Batches

    @property
    def folder(self) -> pathlib.Path:
        return self.batches.folder

    def work(self, tell: Callable[[Result], None]) -> tuple[int, int]:
        """Draws what is not drawn yet; returns how many pictures were drawn, and how many there were before."""
        for asked in self.asked:
            if asked.about is not None:
                path = self.folder / IMAGES / asked.name / "metadata.jsonl"
                storage.make_folder(path.parent)
                storage.write_whole(path, json.dumps(asked.about))
        counts = work_through(self.batches, tell)
        if SCORERS[self.name].grid:
            for line in self.batches.lines:
                self._join(line)
        return counts

    def _join(self, line: Line) -> None:
        """Writes the pictures of a prompt as one, two in a row."""
        paths = [self.folder / f"{self.batches.place(line, sample)}.png" for sample in range(line.number)]
        drawn = [images.decode(path.read_bytes()) for path in paths]
        height, width, channels = drawn[0].shape
        if height != width:
            raise UsageError(f"the pictures have {width}x{height} pixels, and this scorer reads squares")
        columns = min(2, len(drawn))
        grid = np.zeros((math.ceil(len(drawn) / columns) * height, columns * width, channels), np.uint8)
        for number, picture in enumerate(drawn):
            top, left = number // columns * height, number % columns * width
            grid[top : top + height, left : left + width] = picture
        storage.make_folder(self.folder / IMAGES)
        storage.write_whole(self.folder / IMAGES / f"{line.id}.png", images.encode_png(grid))

    def command(self) -> str:
        """The command with which the scorer reads the pictures, in its own folder."""
        first = next((self.folder / IMAGES).rglob("*.png"))
        side = images.decode(first.read_bytes()).shape[1]
        number = self.batches.lines[0].number
        side = side // min(2, number) if SCORERS[self.name].grid else side
        where = os.path.abspath(self.folder)
        return SCORERS[self.name].command.format(
            images=os.path.join(where, IMAGES), folder=where, side=side, number=number
        )


def open_folder(
    run: Trained, name: str, prompts: str | os.PathLike, folder: str | os.PathLike, settings: dict[str, Any],
    *, seed: int = 0, number: int = 0, size: tuple[int, ...] = (0, 0), limit: int = 0, rows: int = ROWS,
) -> Folder:  # fmt: skip
    """Reads a benchmark's prompts and prepares the drawing of them.

    Args:
      run: the model.
      name: a key of `SCORERS`.
      prompts: the benchmark's file or folder of prompts.
      folder: where pictures are written; a second call goes on there.
      settings: fields of `SamplerConfig` in place of the run's.
      seed: decides the noise, with the name of a prompt and the number of a picture.
      number: pictures of each prompt; 0: as the benchmark has it.
      size: sides of the latents that are drawn, see `Trained.generate`.
      limit: the first so many prompts; 0: all. Scores of a part compare with nothing that is published.
      rows: pictures that are drawn at a time.

    Raises:
      UsageError: naming what is wrong with the prompts.
    """
    scorer = SCORERS[name]
    asked = scorer.prompts(pathlib.Path(prompts))
    if not asked:
        raise UsageError(f"{shown(str(prompts))} holds no prompts")
    asked = asked[: limit or None]
    number = number or scorer.number
    if scorer.grid and number > 4:
        raise UsageError(f"{number} pictures of a prompt: this scorer reads 4 at most")
    lines = []
    for one in asked:
        line = Line(f"prompt {one.name}", one.name, "draw", (checked_text(one.text),), number, seed, size=size)
        if line.stem(0) != (one.name if number == 1 else f"{one.name}-0"):
            raise UsageError(f"{shown(repr(one.name))} is no name of a file, and the scorer wants it for one")
        lines.append(line)
    within = "samples" if scorer.grid else IMAGES
    return Folder(
        name, asked,
        Batches(
            run, lines, pathlib.Path(folder), settings, rows,
            place=lambda line, sample: f"{within}/{_named(scorer, line, sample)}", colour=True,
        ),
    )  # fmt: skip


def _named(scorer: Scorer, line: Line, sample: int) -> str:
    return scorer.place(line.id, sample)
