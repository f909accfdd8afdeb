"""Every measure of a unified model: its losses on held-out data, the images that it draws, the captions it writes."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.api import load_run
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluation import pictures, scores
from transfusion.evaluation.caption_scores import caption_scores
from transfusion.evaluation.examples import Examples, medium_of_sources, read_examples
from transfusion.evaluation.losses import (
    DocumentBits,
    code_bits,
    held_out_batches,
    spelled_bits,
    text_bits,
    velocity_loss,
)
from transfusion.evaluation.meanings import MEANINGS
from transfusion.evaluation.options import Options
from transfusion.evaluation.scenes.measure import measure as measure_scenes
from transfusion.evaluation.similarity import Similarity
from transfusion.evaluation.zero_shot import compared, zero_shot
from transfusion.sequence import TEXT
from transfusion.sequence.batch import Batch
from transfusion.sequence.code_items import Codes
from transfusion.sequence.times import AHEAD

CAPTION_SCORES = ("caption_accuracy", "caption_chrf", "caption_cider")
DISTANCES = ("feature_distance", "kernel_distance")
_SHOWN = 100  # images of a saved grid
# The kinds of sources whose records are judged exactly, and what measures a run of them: the field of its name.
EXACT = {"scenes": measure_scenes}
_EXACT_ROWS = 96  # of each held-out source, on which the losses of such a run are measured: its scores tell more


class Measures:
    """Measures one run; each part fills its fields, or says why it cannot.

    Attributes:
      fields: the scores by name; None where there is none.
      absent: why a score is None.
      seconds: the wall time of each part.
    """

    def __init__(self, workdir: str | os.PathLike, options: Options | None = None):
        options = options or Options()
        self.workdir, self.run = pathlib.Path(workdir), load_run(workdir)
        self.experiment = self.run.experiment
        config = self.experiment.eval
        self.samples = options.samples or config.samples
        self.captions = options.captions or config.captions
        self.seed = self.experiment.seed if options.seed is None else options.seed
        wanted = {"guidance": options.guidance, "steps": options.steps}
        self.sampler = {name: value for name, value in wanted.items() if value is not None}
        self.judge_steps, self.judges = options.judge_steps, options.judges and pathlib.Path(options.judges)
        self.similarity = Similarity(options.similarity) if options.similarity else None
        self.fields: dict[str, Any] = dict.fromkeys(n for n in MEANINGS if n != "similarity" or self.similarity)
        self.absent: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.folder = self.workdir / "samples"

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures the wall time of a part."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def all(self) -> dict[str, Any]:
        """Runs every part that the run's data and streams allow; returns the scores."""
        sources, data = self.experiment.eval.sources, self.experiment.data
        if exact := {source.kind for source in data.sources.values()} & EXACT.keys():
            return self.exact(exact)
        with self.part("data"):
            kind = medium_of_sources(sources or data.sources, data) or "image"
            real = read_examples(data.sources, data, kind=kind)
            held_out = read_examples(sources, data, kind=kind)
        with self.part("text"):
            self.text()
        with self.part("velocity"):
            self.velocity()
        if not any(self.run.spec.content(run).sides for entry in self.run.spec.entries for run in entry.runs):
            self.skip("the model has no image stream", *self.image_scores)
        elif kind != "image":
            self.skip(f"measured for images only, and the data's media are {kind!r}", *self.image_scores)
            self.written(held_out)
        else:
            self.images(real, held_out)
        return self.report()

    def exact(self, kinds: set[str]) -> dict[str, Any]:
        """Measures losses, and what is drawn and read by exact judges, which need no real images."""
        with self.part("text"):
            self.text()
        with self.part("velocity"):
            self.velocity()
        for kind in sorted(kinds):
            with self.part(kind):
                self.fields[kind] = EXACT[kind](self.run, self.samples, self.seed, self.folder, **self.sampler)
            self.skip(f"judged exactly: see {kind}", *self.image_scores)
        return self.report()

    image_scores = ("generation_accuracy", "judge_accuracy", *DISTANCES, *CAPTION_SCORES, "retrieval")

    def similar(self, drawn: scores.Generated) -> None:
        """Compares drawn images with their prompts, if a model for that is given."""
        if self.similarity:
            with self.part("similarity"):
                self.fields["similarity"] = self.similarity.scores(list(drawn.images), drawn.prompts, self.seed)

    def skip(self, reason: str, *names: str) -> None:
        """Leaves these scores null, for this reason."""
        self.absent |= dict.fromkeys(names, reason)

    def writes(self, *names: str) -> bool:
        """Whether the model writes text; if not, the scores are left null, with the reason."""
        try:
            self.run.check_writes()
        except UsageError as error:
            self.skip(str(error), *names)
            return False
        return True

    # --- losses -------------------------------------------------------------------------------------------------------

    def text(self) -> None:
        """Measures the bits per byte of the held-out text, of all sources and of each."""
        task, params = self.run.task, self.run.params
        if not self.writes("text_bits_per_byte"):
            return None
        parts: dict[str, DocumentBits] = {}
        for name, source in self.experiment.eval.sources.items():
            parts[name] = text_bits(task, params, self.batches(source))
        if not parts or not sum(part.bytes.sum() for part in parts.values()):
            return self.skip("the config has no held-out text", "text_bits_per_byte")
        whole = next(iter(parts.values()))
        for part in list(parts.values())[1:]:
            whole = whole.join(part)
        self.fields["text_bits_per_byte"] = whole.score(seed=self.seed)
        self.fields["text_bits_per_byte_after_image"] = whole.score(whole.after_image, self.seed)
        self.fields["text_bits_per_byte_without_image"] = whole.score(~whole.after_image, self.seed)
        self.fields["text_bits_per_byte_by_source"] = {name: part.score(seed=self.seed) for name, part in parts.items()}

    def held_out(self) -> Iterator[Batch]:
        """Packed batches of all held-out sources."""
        for source in self.experiment.eval.sources.values():
            yield from self.batches(source)

    def batches(self, source: SourceConfig) -> Iterator[Batch]:
        """Packed batches of a held-out source."""
        most = max(_EXACT_ROWS // self.experiment.batch_size, 1) if source.kind in EXACT else None
        return itertools.islice(held_out_batches(self.run.task, self.experiment, source), most)

    def velocity(self) -> None:
        """Measures the losses of images, of their latents and of their codes."""
        task, result, codes = self.run.task, {}, {}
        for name, stream in task.spec.streams.items():
            if stream.objective in ("continuous", *AHEAD):
                result[name] = velocity_loss(task, self.run.params, self.held_out(), name, self.seed)
            elif isinstance(stream.content, Codes) and stream.objective != "none":
                codes[name] = code_bits(task, self.run.params, self.held_out(), name, self.seed)
        if task.spec.spelling:
            codes[TEXT] = spelled_bits(task, self.run.params, self.held_out(), self.seed)
        self.fields["velocity_loss"] = {n: found for n, found in result.items() if found} or None
        self.fields["code_bits"] = {n: found for n, found in codes.items() if found} or None
        if not self.fields["velocity_loss"]:
            self.skip("no held-out image is a target of a continuous stream", "velocity_loss")
        if codes and not self.fields["code_bits"]:
            self.skip("no held-out image is a target of a stream of codes", "code_bits")

    # --- images -------------------------------------------------------------------------------------------------------

    def images(self, real: Examples, held_out: Examples) -> None:
        """Measures what the model draws and reads of images, and writes pictures of both."""
        self.compared(real, held_out)
        if self.run.drawn is None:
            self.skip("the model draws no images", *(s for s in self.image_scores if s not in CAPTION_SCORES))
        elif self.experiment.eval.prompts == "held_out":
            reason = "captions are open (eval.prompts is 'held_out'): see retrieval"
            self.skip(reason, "generation_accuracy", "judge_accuracy", *DISTANCES)
            self.names(real, held_out)
        else:
            self.classes(real, held_out)
        if (rows := self.written(held_out)) is None:
            return
        shown = rows[:_SHOWN]
        pictures.grid(
            held_out.images[: len(shown)], 10, [row["caption"] for row in shown],
            marks=[not row["right"] for row in shown], path=self.folder / "captions.png",
        )  # fmt: skip

    def compared(self, real: Examples, held_out: Examples) -> None:
        """Names the classes of held-out images by the nearest caption, if the model has learned to compare them."""
        if compared(self.run) is None:
            return None
        if not (real.labelled and held_out.labelled and any(real.captions)):
            return self.skip("the data has no labels with captions", "zero_shot_accuracy")
        with self.part("zero_shot"):
            self.fields["zero_shot_accuracy"] = zero_shot(self.run, real, held_out, self.captions)

    def written(self, held_out: Examples) -> tuple[dict, ...] | None:
        """Writes captions of held-out media, and counts how many are right."""
        if not held_out.captioned:
            return self.skip("the held-out data has no captioned images", *CAPTION_SCORES)
        if not self.run.spec.reads_media:
            return self.skip("the model reads no images", *CAPTION_SCORES)
        if not self.writes(*CAPTION_SCORES):
            return None
        with self.part("captions"):
            result = scores.captioning(self.run, held_out, self.captions, self.seed)
        self.fields |= {"caption_accuracy": result.score} | caption_scores(result.rows, self.seed)
        for name in CAPTION_SCORES:
            self.absent.pop(name, None)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)
        storage.write_whole(self.folder / "captions.jsonl", lines)
        return result.rows

    def classes(self, real: Examples, held_out: Examples) -> None:
        """Draws images for the classes' captions; a classifier of the labels judges them."""
        if not real.labelled or not any(real.captions):
            reason = "the training data has no labels with captions to ask for and to judge by"
            return self.skip(reason, "generation_accuracy", "judge_accuracy", *DISTANCES)
        with self.part("judge"):
            judge = scores.open_judge(self.workdir, real, self.judge_steps, self.judges)
            if held_out.labelled:
                images = scores.to_float(held_out.images)
                self.fields["judge_accuracy"] = judge.accuracy(images, held_out.labels)
            else:
                self.skip("the held-out data has no labels", "judge_accuracy")
        with self.part("generation"):
            drawn = scores.draw_classes(self.run, real, self.samples, self.seed, **self.sampler)
            result = scores.generation(judge, drawn)
        self.fields |= {"generation_accuracy": result.all, "generation_accuracy_by_prompt": result.by_prompt}
        with self.part("feature_distance"):
            for name, distance in zip(DISTANCES, scores.feature_distances(judge, drawn, real, self.seed), strict=True):
                self.fields[name] = distance
        if self.fields["feature_distance"] is None:
            self.skip("fewer than 4 drawn or 8 real images", *DISTANCES)
        self.similar(drawn)
        self.save("generated.png", drawn, ~result.right)

    def names(self, real: Examples, held_out: Examples) -> None:
        """Draws images for open captions; the nearest real images judge them."""
        if not real.captioned or not held_out.captioned or real.images.shape[1:] != held_out.images.shape[1:]:
            return self.skip("training and held-out data need captioned images of one size", "retrieval")
        each = max(1, self.samples // 2)
        with self.part("generation"):
            groups = {
                "training_names": scores.draw_names(self.run, real, each, self.seed, **self.sampler),
                "held_out_names": scores.draw_names(self.run, held_out, each, self.seed + 1, **self.sampler),
            }
        for name, drawn in groups.items():
            self.save(f"generated_{name}.png", drawn, None)
        other = groups["held_out_names"]
        self.similar(other)
        groups["held_out_names"] = dataclasses.replace(other, asked=other.asked + len(real))
        gallery = np.concatenate([real.images, held_out.images])
        embed, reason = scores.embeddings(min(gallery.shape[1:3]))
        if reason:
            self.skip(reason, "retrieval by VGG features")
        with self.part("retrieval"):
            found = scores.retrieval_by_group(groups, gallery, embed)
        self.fields["retrieval"] = found | {"gallery": len(gallery), "chance": scores.chance(len(gallery))}

    def save(self, name: str, drawn: scores.Generated, wrong: np.ndarray | None) -> None:
        """Writes the first images as a grid, in which wrong ones are framed."""
        marks = None if wrong is None else [bool(x) for x in wrong[:_SHOWN]]
        pictures.grid(drawn.images[:_SHOWN], 10, drawn.prompts[:_SHOWN], marks=marks, path=self.folder / name)

    # --- the result ---------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The scores, what each of them counts, and how images were drawn."""
        sampler = dataclasses.asdict(self.run.sampler(**self.sampler))
        own = {"absent": self.absent, "how": MEANINGS, "sampler": sampler, "samples": self.samples}
        return self.fields | own
