"""The two tasks: each turns a config into parameters, a loss and data. The training loop knows no objective.

A task is a learner (`transfusion.learner`, `transfusion.codecs.learner`), which knows batches only, with the data that
training needs. It has
  template: `Template`, the parameters' shapes and logical axes, and `init(key)`
  batch_spec(rows), fake_batch(rows)
  draw(batch, key): the step's random numbers, for the whole batch
  with_targets(params, batch, draws): the draws and the targets that come from the model itself, without gradient
  totals(batch): the weight of each term of the loss, from the data alone
  loss(params, batch, draws, totals): the scalar, already divided by the totals, and Sums for the log; an entry
    `STATISTICS` of them is for the next function only
  after_step(old, new, statistics): the trained parameters `new`, which the optimizer made of `old`, after the changes
    that come from statistics of the whole batch and not from a gradient
  activations(rows): logical axes and shapes of the arrays that are split over devices, by the field of the config
  tokens(rows): the tokens of one step, padding included
  flops(batch): the FLOPs of one step on each row of this very batch
  open_data(experiment, rows), held_out(experiment): batches of numpy arrays
  start(experiment, given): the parameters to start from, by path, with those that are measured on the data
Gradients of parts of a batch (microbatches, devices) add up to the gradient of the whole.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from transfusion import initial
from transfusion.codecs import semantic
from transfusion.codecs.learner import CodecLearner
from transfusion.config import Experiment
from transfusion.data.check import check_data
from transfusion.data.config import DataConfig, Record
from transfusion.data.image_batches import ImageBatches, image_epoch, usable_image
from transfusion.data.latent_source import check_latents
from transfusion.data.pipeline import Pipeline, epoch_batches
from transfusion.data.sources import Source, open_source
from transfusion.errors import UsageError
from transfusion.latents import Codecs, check_resolutions, open_codecs
from transfusion.learner import Learner
from transfusion.sequence.batch import Batch
from transfusion.sequence.text import open_tokenizer


def _check_data(experiment: Experiment, opened: Mapping[str, Source], example: Callable[[Record], object]) -> None:
    """Refuses data without a record that can be used, and held-out data that training could not evaluate on."""
    held_out = experiment.eval
    check_data(experiment.data, opened, example, held_out.sources, bool(held_out.every))
    if held_out.every and held_out.sources and held_out.batches < 1:
        raise UsageError(f"eval.batches={held_out.batches} must be at least 1; eval.every=0 evaluates nothing")


class SequenceTask(Learner):
    """Training a unified model on packed rows of documents."""

    def open_data(self, experiment: Experiment, rows: Sequence[int] | None = None) -> contextlib.AbstractContextManager:
        """The given `rows` of the endless training batches, with `state`, `restore`, `stats` and `fingerprint`.

        Raises:
          UsageError: if the data cannot be used, held-out data included; see `check_data`.
        """
        codecs = open_codecs(experiment)
        check_resolutions(experiment.data.sources, self.spec, codecs)
        self._check_latents(experiment.data, codecs)
        data = Pipeline(
            experiment.data, self.spec, experiment.batch_size, experiment.seed, rows, codecs.encode,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        _check_data(experiment, data.sources, data.example_of)
        return data

    def start(self, experiment: Experiment, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns `given`: this task measures nothing on the data."""
        return given

    def _check_latents(self, data: DataConfig, codecs: Codecs) -> None:
        check_latents(data.sources, data, self.spec.reads_pixels, lambda kind: codecs[kind].digest)

    def held_out(self, experiment: Experiment) -> Iterator[Batch]:
        """Batches with every held-out record once."""
        codecs = open_codecs(experiment)
        nothing_dropped = {"drop_caption": 0.0, "drop_conditions": {}}
        data = dataclasses.replace(experiment.data, sources=experiment.eval.sources, **nothing_dropped)
        self._check_latents(data, codecs)
        for name, source in experiment.eval.sources.items():
            source.validate(f"eval.sources.{name}", data.pixel_limit)
            records = open_source(source, data.data_dir, data.pixel_limit)
            yield from epoch_batches(
                records, data, self.spec, experiment.batch_size, experiment.seed, codecs.encode, self.tokenizer
            )


class AutoencoderTask(CodecLearner):
    """Training an autoencoder on images or clips."""

    def open_data(self, experiment: Experiment, rows: Sequence[int] | None = None) -> contextlib.AbstractContextManager:
        medium, shape = self.medium, self.shape
        data = ImageBatches(experiment.data, experiment.batch_size, experiment.seed, rows, medium, shape)
        _check_data(experiment, data.sources, lambda record: usable_image(record, medium, shape))
        return data

    def start(self, experiment: Experiment, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Adds the mean and deviation of a tower's features over the first training images, if there is a tower."""
        if self.config.tower is None:
            return given
        fresh = self.template.init
        tower = jax.jit(lambda given: initial.replace(fresh(jax.random.key(experiment.seed)), given)["tower"])(given)
        with ImageBatches(experiment.data, semantic.BATCH, experiment.seed, shape=self.shape) as batches:
            images = (batch["images"] for batch in itertools.islice(batches, semantic.BATCHES))
            return given | semantic.feature_statistics(self.template, tower, images)

    def held_out(self, experiment: Experiment) -> Iterator[dict[str, np.ndarray]]:
        data = dataclasses.replace(experiment.data, sources=experiment.eval.sources)
        for name, source in experiment.eval.sources.items():
            source.validate(f"eval.sources.{name}", data.pixel_limit)
            records = open_source(source, data.data_dir, data.pixel_limit)
            yield from image_epoch(records, experiment.batch_size, self.medium, self.shape)


Task = SequenceTask | AutoencoderTask


def flops_of_data(task: Task, experiment: Experiment, rows: int = 16) -> float:
    """The model FLOPs of a row, as the mean over the first `rows` rows that the training reads.

    Raises:
      UsageError: if the data are not there, or cannot be used.
    """
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, prefetch=0))
    lanes = min(rows, experiment.batch_size)
    with task.open_data(experiment, range(lanes)) as data:
        counts = [task.flops(batch) for batch in itertools.islice(data, -(-rows // lanes))]
    return float(np.mean(np.concatenate(counts)[:rows]))


def make_task(experiment: Experiment) -> Task:
    """The task of an experiment.

    Raises:
      UsageError: if its parts do not fit each other.
    """
    if experiment.task == "sequence":
        if not experiment.streams or "text" not in experiment.streams:
            raise UsageError("streams: a sequence needs at least the stream 'text'")
        tokenizer = open_tokenizer(experiment.tokenizer)
        return SequenceTask(experiment.model, experiment.spec_with(tokenizer), experiment.objectives, tokenizer)
    cached = [name for name, s in (experiment.data.sources | experiment.eval.sources).items() if s.latents]
    if cached:
        raise UsageError(f"sources.{cached[0]}.latents: an autoencoder is trained on pixels")
    config = experiment.autoencoder
    sides = {(source.length, source.resolution) for source in experiment.data.sources.values()}
    if len(sides) != 1 or 0 in {side for _, side in sides}:
        raise UsageError("data.sources: an autoencoder needs one resolution, the same for all sources")
    frames, side = sides.pop()
    if config.frames and not frames:
        raise UsageError("data.sources: an autoencoder of clips needs one length, the same for all sources")
    return AutoencoderTask(config, (frames, side, side) if config.frames else (side, side))
