"""Works through a list of prompts in batches of one compiled shape, and goes on where an earlier call was stopped.

A sample depends on its line's seed and id, on its own number and on what is asked for; not on the prompts that were
beside it, nor on whether it was made by the first call or by one that went on. To the last bit this holds for one
number of rows, because prompts are only put together with those that are laid out in the same shape, and every batch is
filled up to the same number of rows. (Guidance by media, or with padding in the text's place, is equal up to rounding:
where all prompts of a batch compare with the same version, it is read once.)

A sample counts as done when its files are whole and its row stands in DIR/results.jsonl.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from transfusion import storage
from transfusion.adapters.lines import Line, check_names
from transfusion.adapters.shapes import fit
from transfusion.api import Trained
from transfusion.data import media
from transfusion.errors import UsageError, shown
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.prompts import Prompt
from transfusion.sequence import TEXT

ROWS = 16  # samples of a batch
SMALL = 2**16  # numbers of an array that is read to name the weights
RESULTS, ABOUT = "results.jsonl", "batch.json"
SUFFIXES = {1: ".wav", 3: ".png", 4: ".webp"}  # by the axes of what is drawn: a sound, an image, a clip

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Batches:
    """A list of prompts, and the folder of what they give.

    Attributes:
      run: the model.
      lines: what is asked for.
      folder: where files and results are written.
      settings: fields of `SamplerConfig` in place of the run's.
      rows: samples of a batch: a program is compiled for so many, and fewer are filled up.
      place: the path of a sample's file in the folder, without its suffix.
      colour: whether grey images are written with three channels, for scorers that expect them.
    """

    run: Trained
    lines: Sequence[Line]
    folder: pathlib.Path
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: int = ROWS
    place: Callable[[Line, int], str] = Line.stem
    colour: bool = False

    def __post_init__(self):
        if self.rows < 1:
            raise UsageError(f"a batch of {self.rows} rows: at least 1")
        check_names(self.lines)

    # --- what is done -------------------------------------------------------------------------------------------------

    def open(self) -> dict[tuple[str, int], Result]:
        """Makes the folder, or checks that it is of the same run and settings; returns what is done by id and sample.

        Raises:
          UsageError: if the folder holds results of another step of the run, of other settings or another run, or
            cannot be written.
        """
        storage.make_folder(self.folder)
        about = {"step": int(self.run.step), "weights": weights_of(self.run), "settings": self.settings}
        path = self.folder / ABOUT
        try:
            before = storage.read_json(path)
        except ValueError as error:
            raise UsageError(f"{path} is damaged ({error}): remove it if the folder's results may stay") from error
        if before is None:
            storage.write_whole(path, json.dumps({"workdir": os.path.abspath(self.run.workdir)} | about, indent=2))
        else:
            for name, value in about.items():
                if not isinstance(before, dict) or before.get(name) != value:
                    was = before.get(name) if isinstance(before, dict) else before
                    raise UsageError(
                        f"{self.folder} holds results with {name} {shown(repr(was))}, and now it is "
                        f"{shown(repr(value))}: give another folder"
                    )
        rows, _ = storage.read_json_lines(self.folder / RESULTS, is_result)
        return {(row["id"], row["sample"]): row for row in rows}

    def is_done(self, line: Line, sample: int, row: Result | None) -> bool:
        """Whether a row of the results is what the line asks for now, and its files are there."""
        if row is None or row["digest"] != line.digest:
            return False
        inside = [os.path.normpath(name) for name in row["files"]]
        named = all(name.startswith(self.place(line, sample)) for name in inside)
        return named and all((self.folder / name).is_file() for name in inside)

    # --- the work -----------------------------------------------------------------------------------------------------

    def work(self) -> Iterator[Result]:
        """Makes what is not done yet, batch by batch; gives the result of each sample once it is on disk.

        Raises:
          UsageError: if a line cannot be read or does not fit the model, naming it; or as `open`.
        """
        done = self.open()
        waiting: dict[Hashable, list[tuple[Line, int, Prompt]]] = {}
        for line in self.lines:
            left = [
                sample for sample in range(line.number) if not self.is_done(line, sample, done.get((line.id, sample)))
            ]
            if not left:
                continue
            prompt, shape = self._read(line)
            for sample in left:
                batch = waiting.setdefault((line.task, shape), [])
                batch.append((line, sample, prompt))
                if len(batch) == self.rows:
                    yield from self._finish(waiting.pop((line.task, shape)))
        for batch in waiting.values():
            yield from self._finish(batch)

    def left(self) -> int:
        """How many samples are not done."""
        done = self.open()
        return sum(
            not self.is_done(line, sample, done.get((line.id, sample)))
            for line in self.lines
            for sample in range(line.number)
        )

    def sampler(self, task: str) -> SamplerConfig:
        """The settings with which a task is done, as `draw`, `caption` and `generate` of the run have them."""
        run = self.run
        frames = run.sampler(**self.settings).min_images
        answers = {"max_images": 1, "max_tokens": 0} if run.answers else {}
        settings = {
            "draw": {"max_tokens": 0, "max_images": max(1, frames)} | self.settings,
            "caption": {"temperature": 0.0, "max_images": 0} | self.settings | answers,
            "write": self.settings,
        }
        return run.sampler(**settings[task])

    def _read(self, line: Line) -> tuple[Prompt, Hashable]:
        """The line's prompt, and the shape into which it is laid out."""
        run, config = self.run, self.sampler(line.task)
        try:
            if line.task == "draw" and not run.draws:
                raise UsageError("this model draws nothing")
            content = tuple(segment for part in line.parts for segment in run.segments(part))
            against = run.segments(config.negative) if config.negative else ()
            answers = line.task == "caption" and run.answers
            kind, draw = (TEXT, True) if answers else (line.kind, line.task == "draw")
            prompt = Prompt(content, draw, against, line.label, kind=kind, size=line.size)
            _, shape = fit(run, prompt, config.think > 0)
        except UsageError as error:
            raise UsageError(f"{line.where}: {error}") from error
        return prompt, shape

    def _finish(self, batch: Sequence[tuple[Line, int, Prompt]]) -> Iterator[Result]:
        """Makes a batch and writes it; spare rows repeat the last sample."""
        spare = self.rows - len(batch)
        prompts = [prompt for *_, prompt in batch]
        numbers = [line.noise(sample) for line, sample, _ in batch]
        where = batch[0][0].where if len(batch) == 1 else f"{batch[0][0].where} and {len(batch) - 1} more"
        try:
            made = self.run.continued(
                prompts + prompts[-1:] * spare, 0, self.sampler(batch[0][0].task),
                numbers=numbers + numbers[-1:] * spare, batch=self.rows,
            )  # fmt: skip
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        for (line, sample, _), parts in zip(batch, made, strict=False):
            yield self._write(line, sample, parts)

    def _write(self, line: Line, sample: int, parts: Sequence[str | np.ndarray]) -> Result:
        """Writes the files of a sample, and then its row."""
        path, files = self.place(line, sample), []
        drawn = [part for part in parts if not isinstance(part, str)]
        if line.task == "draw" and len(drawn) > 1 and len({part.shape for part in drawn}) == 1 and drawn[0].ndim == 3:
            drawn = [np.stack(drawn)]  # the frames of a world model
        for number, part in enumerate(drawn):
            name = path if line.task == "draw" and len(drawn) == 1 else f"{path}/{number}"
            files.append(self._save(name, part))
        text = "".join(part for part in parts if isinstance(part, str))
        row = {"id": line.id, "sample": sample, "task": line.task, "text": text, "files": files, "digest": line.digest}
        storage.append_line(self.folder / RESULTS, json.dumps(row, ensure_ascii=False))
        return row

    def _save(self, name: str, medium: np.ndarray) -> str:
        suffix = SUFFIXES[medium.ndim]
        if self.colour and medium.ndim == 3 and medium.shape[-1] == 1:
            medium = np.repeat(medium, 3, axis=-1)
        kind = {".wav": "sound", ".png": "image", ".webp": "video"}[suffix]
        data = media.to_file(medium, suffix, self.run.codecs[kind].rate)
        storage.make_folder((self.folder / name).parent)
        storage.write_whole(self.folder / f"{name}{suffix}", data)
        return f"{name}{suffix}"


def weights_of(run: Trained) -> str:
    """Names a run's weights, wherever its workdir was moved to: a digest of its small arrays, such as norms and biases,
    which no two trainings share."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(run.params):
        if leaf.size <= SMALL:
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def is_result(row: Any) -> bool:
    """Whether a row of results.jsonl is one of ours."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("id"), str)
        and isinstance(row.get("sample"), int)
        and isinstance(row.get("digest"), str)
        and isinstance(row.get("files"), list)
        and all(isinstance(name, str) for name in row["files"])
    )


def work_through(batches: Batches, tell: Callable[[Result], None]) -> tuple[int, int]:
    """Works through a list; `tell` gets each result. Returns how many were made, and how many were done before."""
    left = batches.left()
    before = sum(line.number for line in batches.lines) - left
    if before:
        logging.info("%d of %d are done in %s; going on", before, before + left, batches.folder)
    made = 0
    for result in batches.work():
        tell(result)
        made += 1
    return made, before
