"""Held-out losses that mean the same in every run: bits per byte of text, velocity loss at fixed times.

Training draws noise levels and drops captions by chance; here nothing is drawn but one fixed noise.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.batch import Batch
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.evaluation.intervals import Score, bootstrap
from transfusion.model.parameters import Params
from transfusion.objectives import next_token
from transfusion.objectives.continuous import noised, spread
from transfusion.objectives.paths import PATHS, estimates, target
from transfusion.sequence import TEXT
from transfusion.spelling import Spelling
from transfusion.tasks import Draws, SequenceTask

TIMES = tuple(round(0.1 * i, 1) for i in range(1, 10))
ENOUGH = 512  # images of the velocity loss
BYTES = 256  # ids below are bytes


def held_out_batches(task: SequenceTask, experiment: Experiment, source: SourceConfig) -> Iterable[Batch]:
    """Packed batches with every record of a held-out source once: no condition dropped, no image mirrored."""
    data = dataclasses.replace(experiment.data, flip=0.0)
    held_out = dataclasses.replace(experiment.eval, sources={"source": source})
    return task.held_out(dataclasses.replace(experiment, data=data, eval=held_out))


# --- text -------------------------------------------------------------------------------------------------------------


def clean_draws(task: SequenceTask, batch: Batch) -> Draws:
    """Draws of a forward pass in which every image is clean (t = 1), as the decoder shows them to text."""
    draws = task.draw(batch, jax.random.key(0))
    for name, stream in task.spec.streams.items():
        if not stream.discrete:
            part = batch[name]
            draws[name] |= {"time": jnp.ones_like(part.time_low), "noise": jnp.zeros_like(part.values)}
    return draws


def token_bits(task: SequenceTask, params: Params, batch: Batch, stream: str = TEXT) -> jax.Array:
    """-log2 probability of the target of each of the stream's tokens, float32 [B, N]; meaningless where the loss weight
    is 0."""
    model, draws = task.template.bind(params), clean_draws(task, batch)
    encoded, _ = model.encode({name: task.inputs(name, batch, draws) for name in task.spec.streams})
    hidden = encoded[stream].hidden
    nll, _ = next_token.cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), model.head_of(stream).kernel[...], batch[stream].targets.reshape(-1),
        task.objectives.next_token.chunk,
    )  # fmt: skip
    return nll.reshape(hidden.shape[:2]) / math.log(2)


@dataclasses.dataclass(frozen=True)
class DocumentBits:
    """Per document: bits of its text targets (end of document and image openers included, what is inside an image
    not), its target bytes, and whether an image stands before its first byte."""

    bits: np.ndarray
    bytes: np.ndarray
    after_image: np.ndarray

    def join(self, other: "DocumentBits") -> "DocumentBits":
        names = [field.name for field in dataclasses.fields(self)]
        return DocumentBits(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))

    def score(self, chosen: np.ndarray | None = None, seed: int = 0) -> Score | None:
        """Bits per byte of the chosen documents, interval by bootstrap over documents; None without bytes."""
        table = np.stack([self.bits, self.bytes], 1)[slice(None) if chosen is None else chosen]
        if not len(table) or not table[:, 1].sum():
            return None
        score = bootstrap(table, lambda rows: rows[:, 0].sum() / max(rows[:, 1].sum(), 1), seed=seed)
        return score | {"bytes": int(table[:, 1].sum())}


def document_bits(batch: Batch, bits: np.ndarray) -> DocumentBits:
    """Sums the bits [B, N] of text targets per document."""
    part = batch[TEXT]
    document, order = np.asarray(part.document), np.asarray(part.order)
    weight = np.where(np.asarray(part.item) > 0, 0, part.loss_weight)  # what an image holds is no text
    targets = np.asarray(part.targets)
    rows, most = document.shape[0], int(document.max()) + 1
    number = (np.arange(rows)[:, None] * most + document).ravel()
    is_byte = (weight > 0) & (targets < BYTES)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, values.ravel(), rows * most)

    first_byte = np.full(rows * most, np.inf)
    np.minimum.at(first_byte, number[is_byte.ravel()], order.ravel()[is_byte.ravel()])
    first_image = np.full(rows * most, np.inf)
    for other in batch.values():
        inside = np.asarray(other.item if other.values is None else other.document) > 0
        place = np.minimum(np.asarray(other.document), most - 1) + np.arange(rows)[:, None] * most
        np.minimum.at(first_image, place[inside], np.asarray(other.order)[inside])
    real = (np.arange(rows * most) % most > 0) & (total(weight) > 0)
    sums = total(np.where(weight > 0, bits, 0)), total(is_byte)
    return DocumentBits(sums[0][real], sums[1][real].astype(np.int64), (first_image < first_byte)[real])


def text_bits(task: SequenceTask, params: Params, batches: Iterable[Batch]) -> DocumentBits:
    """Bits and bytes of every document of the batches."""
    run = jax.jit(lambda params, batch: token_bits(task, params, batch))
    result = DocumentBits(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, bool))
    for batch in batches:
        result = result.join(document_bits(batch, np.asarray(run(params, batch))))
    return result


# --- images -----------------------------------------------------------------------------------------------------------


def spelled_bits(task: SequenceTask, params: Params, batches: Iterable[Batch], seed: int = 0) -> Score | None:
    """Bits per code of images that are spelled in the text's vocabulary, of those after a text; None without any.

    Sizes and ends are not counted. Interval: bootstrap over images.
    """
    spelling = task.spec.spelling
    if spelling is None:
        return None
    names = [name for name, stream in task.spec.streams.items() if TEXT in (name, stream.parts)]
    run = jax.jit(lambda params, batch: {name: token_bits(task, params, batch, name) for name in names})
    tables, total = [np.zeros((0, 2))], 0
    for batch in batches:
        bits = run(params, batch)
        tables.append(_bits_per_item({name: batch[name] for name in names}, bits, spelling))
        total += len(tables[-1])
        if total >= ENOUGH:
            break
    table = np.concatenate(tables)
    return bootstrap(table, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed=seed) if len(table) else None


def _bits_per_item(batch: Batch, bits: Mapping[str, jax.Array], spelling: Spelling) -> np.ndarray:
    """[items, 2]: bits and number of the codes of each item that a byte of its document precedes."""
    rows, most = len(batch[TEXT].item), 1 + max(int(np.max(part.item)) for part in batch.values())
    documents = 1 + int(np.max(batch[TEXT].document))
    first_byte = np.full((rows, documents), np.inf)
    table, start = np.zeros((rows, most, 2)), np.full((rows, most), np.inf)
    home = np.zeros((rows, most), np.int64)
    for name, part in batch.items():
        item, order, document, tokens, targets, weight = (
            np.asarray(getattr(part, f)) for f in ("item", "order", "document", "tokens", "targets", "loss_weight")
        )
        row = np.broadcast_to(np.arange(rows)[:, None], item.shape)
        code = (targets >= spelling.first) & (targets < spelling.first + spelling.codes) & (weight > 0) & (item > 0)
        np.add.at(table, (row[code], item[code]), np.stack([np.asarray(bits[name])[code], np.ones(code.sum())], -1))
        np.minimum.at(start, (row[item > 0], item[item > 0]), order[item > 0])
        home[row[item > 0], item[item > 0]] = document[item > 0]
        byte = (item == 0) & (tokens < BYTES) & (document > 0)
        np.minimum.at(first_byte, (row[byte], document[byte]), order[byte])
    after = np.take_along_axis(first_byte, home, 1) < start
    return table[(table[..., 1] > 0) & after]


def velocity_errors(task: SequenceTask, params: Params, batch: Batch, stream: str, time: jax.Array, key) -> jax.Array:
    """Squared error of the velocity, mean over a token's numbers, float32 [B, N]; all images of the stream at `time`.

    Whatever the head predicts is turned into a velocity, so that models of different predictions compare.
    """
    model, draws = task.template.bind(params), clean_draws(task, batch)
    part, config = batch[stream], task.objectives.of_continuous(stream)
    noise = jax.random.normal(key, part.values.shape, jnp.float32)
    draws[stream] = {"time": jnp.full(part.time_low.shape, time), "noise": noise}
    encoded, _ = model.encode({name: task.inputs(name, batch, draws) for name in task.spec.streams})
    t, path = spread(draws[stream]["time"], part.item), PATHS[config.path]
    x = noised(part, draws[stream], config)
    predicted = estimates(path, config.prediction, t, x, model.head(stream, encoded[stream])).velocity
    return jnp.mean(jnp.square(predicted - target(path, "velocity", t, part.values, noise)), axis=-1)


def velocity_loss(
    task: SequenceTask, params: Params, batches: Iterable[Batch], stream: str, seed: int = 0
) -> dict[str, Score]:
    """Mean squared velocity error of target images at each of `TIMES`, and 'mean' over the times; {} without images.

    Images before their caption are left out (training shows them cleaner than most of these times). The noise of an
    image is the same at all times. Intervals: bootstrap over images.
    """
    run = jax.jit(lambda params, batch, time, key: velocity_errors(task, params, batch, stream, time, key))
    tables: list[np.ndarray] = []
    for i, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(seed), i)
        columns = [_per_item(batch[stream], np.asarray(run(params, batch, t, key))) for t in TIMES]
        tables.append(np.stack(columns, 1))
        if sum(map(len, tables)) >= ENOUGH:
            break
    table = np.concatenate(tables) if tables else np.zeros((0, len(TIMES)))
    if not len(table):
        return {}
    scores = {f"{t:g}": bootstrap(table[:, i], seed=seed) for i, t in enumerate(TIMES)}
    return scores | {"mean": bootstrap(table.mean(1), seed=seed)}


def _per_item(part, errors: np.ndarray) -> np.ndarray:
    """Mean error of each item that training may show at any noise level, from errors [B, N]."""
    low = np.asarray(part.time_low)
    rows, items = low.shape
    number = (np.arange(rows)[:, None] * items + np.asarray(part.item)).ravel()
    weight = np.asarray(part.loss_weight).ravel()
    total = np.bincount(number, errors.ravel() * weight, rows * items)
    count = np.bincount(number, weight, rows * items)
    chosen = (count > 0) & (low.ravel() == 0)
    return total[chosen] / count[chosen]
