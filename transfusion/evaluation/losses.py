"""Held-out losses that can be compared between runs: bits per byte of text, velocity errors at fixed noise levels.

Training draws noise levels at random and drops captions; here only one fixed noise is drawn.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.evaluation.intervals import Score, bootstrap
from transfusion.learner import Draws
from transfusion.model.parameters import Params
from transfusion.objectives import OBJECTIVES, next_token
from transfusion.objectives.continuous import noised, spread
from transfusion.objectives.masked import mask
from transfusion.objectives.paths import PATHS, estimates, target
from transfusion.sequence import TEXT
from transfusion.sequence.batch import Batch, StreamSlice
from transfusion.sequence.spelling import Spelling
from transfusion.sequence.text import Tokenizer
from transfusion.tasks import SequenceTask

LOSS_TIMES = tuple(round(0.1 * i, 1) for i in range(1, 10))
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of masked codes
ENOUGH_IMAGES = 512  # images on which velocity losses and bits of codes are measured


def held_out_batches(task: SequenceTask, experiment: Experiment, source: SourceConfig) -> Iterable[Batch]:
    """Packed batches with every record of a held-out source once.

    No condition is dropped, no image mirrored or moved.
    """
    data = dataclasses.replace(experiment.data, flip=0.0, shift=0)
    held_out = dataclasses.replace(experiment.eval, sources={"source": source})
    return task.held_out(dataclasses.replace(experiment, data=data, eval=held_out))


# --- text -------------------------------------------------------------------------------------------------------------


def clean_draws(task: SequenceTask, batch: Batch) -> Draws:
    """The draws of a forward pass in which every image is clean (t = 1), as text sees it in the decoder."""
    return {name: OBJECTIVES[s.objective].clean(batch[name]) for name, s in task.spec.streams.items()}


def token_bits(task: SequenceTask, params: Params, batch: Batch, stream: str = TEXT) -> jax.Array:
    """-log2 of the probability of each target of the stream, float32 [B, N].

    The numbers mean nothing where the loss weight is 0.
    """
    model, draws = task.template.bind(params), clean_draws(task, batch)
    encoded = model.encode({name: task.inputs(name, batch, draws) for name in task.spec.streams})
    chunk = task.objectives.next_token.chunk
    nll, _ = next_token.token_losses(model.head_of(stream), encoded[stream].hidden, batch[stream].targets, chunk)
    return nll / math.log(2)


@dataclasses.dataclass(frozen=True)
class DocumentBits:
    """The bits of the text of documents, one number per document.

    Attributes:
      bits: bits of the text targets, including the end of the document and openers of images, but nothing in images.
      bytes: bytes of the text targets.
      after_image: whether an image precedes the first byte.
    """

    bits: np.ndarray
    bytes: np.ndarray
    after_image: np.ndarray

    def join(self, other: "DocumentBits") -> "DocumentBits":
        names = [field.name for field in dataclasses.fields(self)]
        return DocumentBits(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))

    def score(self, chosen: np.ndarray | None = None, seed: int = 0) -> Score | None:
        """Bits per byte of the chosen documents, with a bootstrap interval over them; None if they have no bytes."""
        table = np.stack([self.bits, self.bytes], 1)[slice(None) if chosen is None else chosen]
        if not len(table) or not table[:, 1].sum():
            return None
        score = bootstrap(table, lambda rows: rows[:, 0].sum() / max(rows[:, 1].sum(), 1), seed=seed)
        return score | {"bytes": int(table[:, 1].sum())}


def document_bits(batch: Batch, bits: np.ndarray, tokenizer: Tokenizer) -> DocumentBits:
    """Sums the bits [B, N] of text targets per document."""
    part = batch[TEXT]
    document, order = np.asarray(part.document), np.asarray(part.order)
    weight = np.where(np.asarray(part.item) > 0, 0, part.loss_weight)  # ids within an image are no text
    targets = np.asarray(part.targets)
    rows, most = document.shape[0], int(document.max()) + 1
    number = (np.arange(rows)[:, None] * most + document).ravel()
    is_word = (weight > 0) & _is_word(targets, tokenizer)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, values.ravel(), rows * most)

    words = np.flatnonzero(is_word)
    words = words[np.lexsort((order.ravel()[words], number[words]))]
    first_word, size = np.full(rows * most, np.inf), np.zeros(rows * most, np.int64)
    np.minimum.at(first_word, number[words], order.ravel()[words])
    for part in np.split(words, np.flatnonzero(np.diff(number[words])) + 1) if len(words) else ():
        size[number[part[0]]] = tokenizer.measure(targets.ravel()[part])
    first_image = np.full(rows * most, np.inf)
    for other in batch.values():
        inside = np.asarray(other.item if other.place is None else other.document) > 0
        place = np.minimum(np.asarray(other.document), most - 1) + np.arange(rows)[:, None] * most
        np.minimum.at(first_image, place[inside], np.asarray(other.order)[inside])
    real = (np.arange(rows * most) % most > 0) & (total(weight) > 0)
    return DocumentBits(total(np.where(weight > 0, bits, 0))[real], size[real], (first_image < first_word)[real])


def _is_word(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    return (ids < tokenizer.size) & ~np.isin(ids, list(tokenizer.specials.values()))


def text_bits(task: SequenceTask, params: Params, batches: Iterable[Batch]) -> DocumentBits:
    """Bits and bytes of every document of the batches."""
    run = jax.jit(lambda params, batch: token_bits(task, params, batch))
    result = DocumentBits(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, bool))
    for batch in batches:
        result = result.join(document_bits(batch, np.asarray(run(params, batch)), task.tokenizer))
    return result


# --- images -----------------------------------------------------------------------------------------------------------


def spelled_bits(task: SequenceTask, params: Params, batches: Iterable[Batch], seed: int = 0) -> dict[str, Score]:
    """Bits per code, as 'mean', of images that are spelled in the text's vocabulary and follow a text; {} without any.

    Sizes and ends of rows are not counted. Interval: bootstrap over images.
    """
    spelling = task.spec.spelling
    if spelling is None:
        return {}
    names = [name for name, stream in task.spec.streams.items() if TEXT in (name, stream.parts)]
    run = jax.jit(lambda params, batch: {name: token_bits(task, params, batch, name) for name in names})
    tables, total = [np.zeros((0, 2))], 0
    for batch in batches:
        bits = run(params, batch)
        tables.append(_bits_per_item({name: batch[name] for name in names}, bits, spelling, task.tokenizer))
        total += len(tables[-1])
        if total >= ENOUGH_IMAGES:
            break
    table = np.concatenate(tables)
    if not len(table):
        return {}
    return {"mean": bootstrap(table, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed=seed)}


def _bits_per_item(batch: Batch, bits: Mapping[str, jax.Array], spelling: Spelling, tokenizer: Tokenizer) -> np.ndarray:
    """The bits and the number of the codes [items, 2] of each item that follows a text of its document."""
    rows, most = len(batch[TEXT].item), 1 + max(int(np.max(part.item)) for part in batch.values())
    documents = 1 + int(np.max(batch[TEXT].document))
    first_word = np.full((rows, documents), np.inf)
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
        word = (item == 0) & _is_word(tokens, tokenizer) & (document > 0)
        np.minimum.at(first_word, (row[word], document[word]), order[word])
    after = np.take_along_axis(first_word, home, 1) < start
    return table[(table[..., 1] > 0) & after]


def velocity_errors(task: SequenceTask, params: Params, batch: Batch, stream: str, time: jax.Array, key) -> jax.Array:
    """The squared error of the velocity, mean over a token's numbers, float32 [B, N], if all images are at `time`.

    Predictions of any kind are turned into velocities, so that models with different predictions can be compared.
    """
    model, draws = task.template.bind(params), clean_draws(task, batch)
    part, config = batch[stream], task.objectives.of_continuous(stream)
    noise = jax.random.normal(key, part.values.shape, jnp.float32)
    draws[stream] = {"time": jnp.full(part.time_low.shape, time), "noise": noise}
    encoded = model.encode({name: task.inputs(name, batch, draws) for name in task.spec.streams})
    t, path = spread(draws[stream]["time"], part.item), PATHS[config.path]
    x = noised(part, draws[stream], config)
    predicted = estimates(path, config.prediction, t, x, model.head(stream, encoded[stream])).velocity
    return jnp.mean(jnp.square(predicted - target(path, "velocity", t, part.values, noise)), axis=-1)


def velocity_loss(
    task: SequenceTask, params: Params, batches: Iterable[Batch], stream: str, seed: int = 0
) -> dict[str, Score]:
    """Mean squared velocity error of target images at each of `LOSS_TIMES`, and 'mean' over the times.

    The result is {} without images. Images before their caption are left out, because training shows them cleaner than
    most of these times. The noise of an image is the same at all times. Intervals: bootstrap over images.
    """
    run = jax.jit(lambda params, batch, time, key: velocity_errors(task, params, batch, stream, time, key))
    return _by_level(
        LOSS_TIMES,
        batches,
        lambda batch, t, key: item_means(batch[stream], np.asarray(run(params, batch, t, key))),
        seed,
    )


def _by_level(
    levels: Sequence[float],
    batches: Iterable[Batch],
    per_item: Callable[[Batch, float, jax.Array], np.ndarray],
    seed: int,
) -> dict[str, Score]:
    """One score per level (a time or a share of masked codes), and 'mean' over the levels; {} without images.

    `per_item(batch, level, key)` gives one number per image. Batches are read until there are `ENOUGH_IMAGES` images. A
    batch has the same key at all levels.
    """
    tables: list[np.ndarray] = []
    for i, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(seed), i)
        tables.append(np.stack([per_item(batch, level, key) for level in levels], 1))
        if sum(map(len, tables)) >= ENOUGH_IMAGES:
            break
    table = np.concatenate(tables) if tables else np.zeros((0, len(levels)))
    if not len(table):
        return {}
    scores = {f"{level:g}": bootstrap(table[:, i], seed=seed) for i, level in enumerate(levels)}
    return scores | {"mean": bootstrap(table.mean(1), seed=seed)}


def code_bits(
    task: SequenceTask, params: Params, batches: Iterable[Batch], stream: str, seed: int = 0
) -> dict[str, Score]:
    """Bits per code of target images, as 'mean'; masked codes also at each share of `SHARES`. {} without images.

    Which codes are masked does not depend on the model. Intervals: bootstrap over images.
    """
    shares = SHARES if task.spec.streams[stream].content.hides else (1.0,)
    run = jax.jit(lambda params, batch, share, key: _code_bits(task, params, batch, stream, share, key))

    def per_item(batch: Batch, share: float, key: jax.Array) -> np.ndarray:
        return item_means(batch[stream], *map(np.asarray, run(params, batch, share, key)))

    scores = _by_level(shares, batches, per_item, seed)
    return scores if len(shares) > 1 or not scores else {"mean": scores["mean"]}


def _code_bits(task: SequenceTask, params: Params, batch: Batch, stream: str, share: jax.Array, key) -> tuple:
    """-log2 of the probability of each code, and which codes count, float32 [B, N] each.

    A `share` of them is masked, and only these count. Codes that are not predicted by masking are all asked for (share
    1), and none is hidden: their objective does not read the mask.
    """
    model, draws, part = task.template.bind(params), clean_draws(task, batch), batch[stream]
    hidden = mask(jnp.full(part.time_low.shape, share), jax.random.uniform(key, part.tokens.shape))
    draws[stream] |= {"mask": hidden}
    encoded = model.encode({name: task.inputs(name, batch, draws) for name in task.spec.streams})
    nll, _ = next_token.token_losses(model.head_of(stream), encoded[stream].hidden, part.targets)
    return nll / math.log(2), hidden.astype(jnp.float32)


def item_means(part: StreamSlice, errors: np.ndarray, counts: np.ndarray | float = 1.0) -> np.ndarray:
    """The mean of errors [B, N] over the tokens of each item that count.

    Items that training does not show at all noise levels are left out.
    """
    low = np.asarray(part.time_low)
    rows, items = low.shape
    number = (np.arange(rows)[:, None] * items + np.asarray(part.item)).ravel()
    weight = (np.asarray(part.loss_weight) * counts).ravel()
    total = np.bincount(number, errors.ravel() * weight, rows * items)
    count = np.bincount(number, weight, rows * items)
    chosen = (count > 0) & (low.ravel() == 0)
    return total[chosen] / count[chosen]
