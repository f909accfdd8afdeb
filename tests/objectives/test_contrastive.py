"""Contrastive losses against sums written plainly, and what a model must be to learn by them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.optim import OptimConfig
from transfusion.sequence import Run
from transfusion.sequence.rows import assemble, expand
from transfusion.tasks import SequenceTask

STREAMS = {
    "text": tiny.text_stream(head="none", objective="none", visible_to=("text",)),
    "image": tiny.image_stream(head="pair", time="none", weight=1.0, visible_to=("image",)),
}
LAYOUT = {"image": (Run("image", position="advance_hold"),)}
# In sequence: two layers of width 32 over 40 tokens, means over 8, and sums over 4 pairs.
OPERATIONS = 600


def streams(kind: str):
    return STREAMS | {"image": dataclasses.replace(STREAMS["image"], objective=kind)}


@functools.cache
def task(kind: str) -> SequenceTask:
    return tiny.task(tiny.spec(streams(kind), LAYOUT))


@functools.cache
def params(kind: str):
    return task(kind).template.init(jax.random.key(0))


def documents():
    """Four pairs, in both orders."""
    rng = np.random.default_rng(0)
    pictures = [tiny.picture(rng, "context") for _ in range(4)]
    texts = [tiny.words(1, 2, 3), tiny.words(4), tiny.words(5, 6), tiny.words(7, 8, 9)]
    return [pair if n % 2 else pair[::-1] for n, pair in enumerate(zip(pictures, texts, strict=True))]


def losses(kind: str, rows) -> tuple[float, dict]:
    of = task(kind)
    batch = assemble([[expand(document, of.spec) for document in row] for row in rows], of.spec)
    draws = of.draw(batch, jax.random.key(1))
    scalar, sums = jax.jit(of.loss)(params(kind), batch, draws, of.totals(batch))
    return float(scalar), jax.tree.map(float, sums)


def vectors(kind: str, document) -> tuple[np.ndarray, np.ndarray]:
    """Those of one document alone, from the trunk's outputs by hand."""
    of, weights = task(kind), params(kind)
    batch = assemble([[expand(document, of.spec)]], of.spec)
    model = of.template.bind(weights)
    inputs = {name: of.inputs(name, batch, of.draw(batch, jax.random.key(1))) for name in of.spec.streams}
    encoded = model.encode(inputs)
    result = []
    for name, kernel in (("image", "kernel"), ("text", "text")):
        real = batch[name].document[0] > 0
        mean = np.asarray(encoded[name].hidden)[0][real].mean(0)
        vector = mean @ np.asarray(weights["parts"]["image"]["head"][kernel])
        result.append(vector / np.linalg.norm(vector))
    return tuple(result)


def by_hand(kind: str) -> float:
    images, texts = (np.stack(x) for x in zip(*(vectors(kind, d) for d in documents()), strict=True))
    if kind == "clip":
        logits = images @ texts.T / 0.07

        def cross_entropy(z):
            return np.mean([np.log(np.exp(z[i]).sum()) - z[i, i] for i in range(4)])

        return (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    logits = 10 * images @ texts.T - 10
    sign = 2 * np.eye(4) - 1
    return float(np.log1p(np.exp(-sign * logits)).sum() / 4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_loss_is_that_of_the_paper_however_rows_are_packed(kind):
    a, b, c, d = documents()
    wanted = by_hand(kind)
    for rows in ([[a, b], [c, d]], [[a, b, c], [d]], [[a], [b], [c], [d]], [[a, b, c, d], []]):
        scalar, sums = losses(kind, rows)
        assert_close(scalar, wanted, OPERATIONS)
        assert sums["image_found"][1] == 4


def test_a_text_without_an_image_is_no_pair():
    a, b, c, d = documents()
    scalar, sums = losses("clip", [[a, b, (tiny.words(1, 2),)], [c, d]])
    assert_close(scalar, by_hand("clip"), OPERATIONS)
    assert sums["image_found"][1] == 4


def test_streams_that_see_each_other_are_refused():
    for name in STREAMS:
        seen = streams("clip") | {name: dataclasses.replace(streams("clip")[name], visible_to=())}
        with pytest.raises(UsageError, match=rf"streams.{name}.visible_to: 'image' and 'text' are compared"):
            tiny.task(tiny.spec(seen, LAYOUT))


def test_microbatches_are_refused():
    of = tiny.spec(streams("clip"), LAYOUT)
    with pytest.raises(UsageError, match="optim.accumulate must be 1: stream 'image' is compared"):
        Experiment(
            batch_size=4, streams=dict(of.streams), layout=dict(of.layout), model=tiny.model(),
            optim=OptimConfig(accumulate=2),
        )  # fmt: skip


def test_the_head_needs_an_objective_that_compares():
    wrong = streams("clip") | {"image": dataclasses.replace(STREAMS["image"], objective="continuous")}
    with pytest.raises(UsageError, match="head 'pair' needs an objective that compares"):
        tiny.task(tiny.spec(wrong, LAYOUT))
