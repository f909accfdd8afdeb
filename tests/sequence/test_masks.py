"""Which token sees which: the rule itself, and that nothing else lets information through."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.errors import UsageError
from transfusion.sequence.masks import Metadata, intervals, metadata, see
from transfusion.sequence.rows import assemble, expand

# --- the rule ---------------------------------------------------------------------------------------------------------


def pieces(rng):
    """Random words and images."""
    return tuple(
        tiny.picture(rng, rng.choice(["target", "context"]))
        if rng.random() < 0.4
        else tiny.words(*rng.integers(0, 11, rng.integers(1, 4)))
        for _ in range(rng.integers(1, 4))
    )


def random_row(spec, rng):
    """Documents that fit one row."""
    row, left = [], dict(spec.budgets)
    for _ in range(rng.integers(1, 4)):
        document = expand(pieces(rng), spec)
        if all(count <= left[name] for name, count in document.cost.items()):
            row.append(document)
            left = {name: room - document.cost.get(name, 0) for name, room in left.items()}
    return row


def mask_of(batch, spec, may=None):
    joined = metadata(batch, spec)
    return np.asarray(see(joined, joined, may)), jax.tree.map(np.asarray, joined)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(tiny.SPECS)))
def test_the_mask_of_any_row_is_what_the_papers_say(seed, name):
    spec = tiny.SPECS[name]
    rng = np.random.default_rng(seed)
    batch = assemble([random_row(spec, rng)], spec)
    mask, tokens = mask_of(batch, spec)
    reading = np.argsort(np.where(tokens.document[0] > 0, tokens.order[0], 10_000), kind="stable")
    used = int((tokens.document[0] > 0).sum())
    assert not mask[0][reading[used:]].any() and not mask[0][:, reading[used:]].any()
    for i, q in enumerate(reading[:used]):
        for j, k in enumerate(reading[:used]):
            same_image = tokens.span[0, q] == tokens.span[0, k] != 0
            earlier = j <= i and not tokens.private[0, k]
            wanted = tokens.document[0, q] == tokens.document[0, k] and (same_image or earlier)
            assert mask[0, q, k] == wanted


def test_the_pictures_of_the_rule_are_what_it_does():
    """The two matrices in the docstring of `see`."""
    lines = [line.split() for line in see.__doc__.splitlines()]
    head, *rows = [line for line in lines if len(line) in (12, 14) and max(map(len, line)) == 1]
    assert head == [*"TOPPCT", *"TNNPPT"]
    bare = tuple(dataclasses.replace(run, opener=-1, closer=-1) for run in tiny.SPECS["bagel"].layout["image"])
    image = tiny.picture(np.random.default_rng(0), side=(4, 2))
    for first, name, runs in ((1, "transfusion", (tiny.image_run(),)), (8, "bagel", bare)):
        streams = tiny.SPECS[name].streams
        streams = {n: dataclasses.replace(s, grid=(4, 2)) if s.channels else s for n, s in streams.items()}
        spec = tiny.spec(streams, {"image": runs})
        document = expand((tiny.words(1), image, tiny.words(2)), spec, begin=False, end=False)
        mask, tokens = mask_of(assemble([[document]], spec), spec)
        reading = np.argsort(np.where(tokens.document[0] > 0, tokens.order[0], 10_000), kind="stable")[:6]
        drawn = np.array([row[first : first + 6] for row in rows]) == "x"
        np.testing.assert_array_equal(mask[0][np.ix_(reading, reading)], drawn)


def test_streams_may_be_hidden_from_others():
    streams = {
        "text": tiny.text_stream(),
        "image": tiny.image_stream(visible_to=("image",)),
    }
    spec = tiny.spec(streams)
    assert spec.visibility.tolist() == [[True, False], [True, True]]
    assert tiny.spec().visibility is None
    batch = assemble([[expand(tiny.documents()[2], spec)]], spec)
    mask, tokens = mask_of(batch, spec, spec.visibility)
    text, image = tokens.stream[0] == 0, tokens.stream[0] == 1
    assert not mask[0][np.ix_(text, image)].any()
    assert mask[0][np.ix_(image, image)].any() and mask[0][np.ix_(image, text)].any()
    second = np.flatnonzero(image)[4:8]
    assert mask[0][np.ix_(second, np.flatnonzero(image)[:4])].all()  # images see earlier images


# --- the rule as intervals --------------------------------------------------------------------------------------------

STREAMS = 4


def packed_rows(rng, rows, length):
    """Metadata [rows, length] of documents with causal runs, spans and private spans of any stream, in any storage
    order, and then padding; some rows are empty."""
    document, span, private = np.zeros((3, rows, length), np.int32)
    begins = rng.random((rows, length)) < 0.4
    document = 1 + np.cumsum(begins & (rng.random((rows, length)) < 0.3), 1)
    run = np.cumsum(begins, 1) + 1
    kind = np.take_along_axis(rng.integers(0, 3, (rows, length + 2)), run, 1)
    # A span never reaches into the next document, because a document begins where a run does.
    span = np.where(kind > 0, run, 0)
    private = np.where(kind == 2, span, 0)
    order = np.broadcast_to(np.arange(length), (rows, length))
    # Half of the runs are of one stream; the others mix, as where openers are text.
    stream = np.take_along_axis(rng.integers(0, STREAMS, (rows, length + 2)), run, 1)
    stream = np.where(rng.random((rows, length)) < 0.3, rng.integers(0, STREAMS, (rows, length)), stream)
    real = order < rng.integers(0, length + 1, (rows, 1))
    columns = [np.where(real, x, 0) for x in (document, order, span, private)]
    stored = np.argsort(rng.random((rows, length)), axis=1)
    columns = [np.take_along_axis(x, stored, 1).astype(np.int32) for x in (*columns, stream)]
    return Metadata(*columns)


@functools.partial(jax.jit, static_argnums=2)
def differences(q, k, may):
    """How many pairs `see` and `intervals` do not agree on, and how many are allowed."""
    may = None if may is None else np.array(may)
    rule = intervals(q, k, may)
    last = jnp.take_along_axis(rule.last, rule.of[..., None], 1)
    told = (rule.first[:, None] <= rule.order[..., None]) & (rule.order[..., None] <= last)
    seen = see(q, k, may)
    return (told != seen).sum(), seen.sum()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_intervals_say_what_the_rule_says(seed, hidden):
    """1,000 rows each; streams that hide from others, and queries and keys that are only some of the tokens."""
    rng = np.random.default_rng(seed)
    tokens = packed_rows(rng, 1000, 28)
    may = None
    if hidden:
        may = tuple(map(tuple, (rng.random((STREAMS, STREAMS)) < 0.6) | np.eye(STREAMS, dtype=bool)))
    wrong, allowed = differences(tokens, tokens, may)
    assert wrong == 0 and allowed > 1000
    here, there = (
        dataclasses.replace(tokens, document=np.where(rng.random(tokens.document.shape) < 0.5, tokens.document, 0))
        for _ in "qk"
    )
    assert differences(here, there, may)[0] == 0


def test_blocks_that_are_torn_apart_are_refused():
    spec = tiny.SPECS["transfusion"]
    document = expand(tiny.documents()[2], spec)
    assemble([[document]], spec)
    image = document.pieces["image"]
    torn = image["order"].copy()
    torn[0], torn[-1] = torn[0] - 1, torn[-1] + 1
    text = document.pieces["text"]
    swapped = text["order"].copy()
    swapped[text["order"] == torn[0]] += 1
    broken = {"image": image | {"order": torn}, "text": text | {"order": swapped}}
    with pytest.raises(UsageError, match="row 0, document 1.*must follow one another in the reading order"):
        assemble([[dataclasses.replace(document, pieces=document.pieces | broken)]], spec)
    outside = {"image": image | {"order": image["order"] + document.length}}
    with pytest.raises(UsageError, match="its reading order runs from"):
        assemble([[dataclasses.replace(document, pieces=document.pieces | outside)]], spec)


# --- the model --------------------------------------------------------------------------------------------------------


@functools.cache
def compiled(name):
    """`outputs(batch, draws)`: logits and predicted patches of every stream with a head that is trained."""
    task = tiny.task(tiny.SPECS[name], layers=2, kv_heads=2)
    params = task.template.init(jax.random.key(1))

    @jax.jit
    def outputs(batch, draws):
        model = task.template.bind(params)
        encoded = model.encode({stream: task.inputs(stream, batch, draws) for stream in task.spec.streams})
        return {stream: model.head(stream, encoded[stream]) for stream in task.spec.streams}

    return task, outputs


@functools.cache
def example(name):
    """Two documents in one row: [words, image, words, image, words], [words, image, words]."""
    task, outputs = compiled(name)
    rng = np.random.default_rng(3)
    documents = [
        (tiny.words(1, 2), tiny.picture(rng), tiny.words(3, 4), tiny.picture(rng), tiny.words(5)),
        (tiny.words(6, 7), tiny.picture(rng), tiny.words(8)),
    ]
    batch = assemble([[expand(document, task.spec) for document in documents]], task.spec)
    draws = jax.tree.map(np.asarray, task.draw(batch, jax.random.key(2)))
    return batch, draws, outputs(batch, draws)


def changed(name, stream, field, where, value):
    """Which tokens' outputs change if `field` of a stream's tokens `where` is set to `value`: {stream: bool [N]}."""
    _, outputs = compiled(name)
    batch, draws, before = example(name)
    batch = jax.tree.map(np.copy, batch)
    getattr(batch[stream], field)[0, where] = value
    after = outputs(batch, draws)
    return {s: np.asarray(jnp.abs(after[s] - before[s]).max(-1)[0] > 1e-6) for s in after}


MODELS = ["transfusion", "experts", "grid", "bagel"]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(MODELS), st.integers(0, 100))
def test_nothing_depends_on_a_later_word_or_on_another_document(name, which):
    batch, _, _ = example(name)
    text = batch["text"]
    used = np.flatnonzero(text.document[0])
    at = used[which % len(used)]
    reached = changed(name, "text", "tokens", at, (text.tokens[0, at] + 1) % 11)
    assert reached["text"][at]
    for stream, moved in reached.items():
        part = batch[stream]
        allowed = (part.document[0] == text.document[0, at]) & (
            (part.order[0] >= text.order[0, at]) | ((part.span[0] == text.span[0, at]) & (part.span[0] > 0))
        )
        assert not moved[~allowed].any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("item", [0, 1, 2])
def test_an_image_changes_itself_as_a_whole_and_nothing_before_it(name, item):
    batch, _, _ = example(name)
    stream = "clean" if name == "bagel" else "image"
    part = batch[stream]
    own = (part.item[0] == item) & (part.document[0] > 0)
    last = np.flatnonzero(own)[-1]
    reached = changed(name, stream, "values", last, 3.0)
    assert reached[stream][own].all()  # its first patch sees its last
    later = 0
    for other, moved in reached.items():
        tokens = batch[other]
        inside = (tokens.span[0] == part.span[0, last]) & (tokens.document[0] > 0)
        after = (tokens.order[0] > part.order[0, last]) & (tokens.document[0] == part.document[0, last])
        assert not moved[~(inside | after)].any()
        later += moved[after & ~inside].sum()
    assert later > 0


@pytest.mark.parametrize("item", [0, 1, 2])
def test_a_private_noised_copy_is_invisible_to_the_rest(item):
    batch, _, _ = example("bagel")
    part = batch["noised"]
    own = (part.item[0] == item) & (part.document[0] > 0)
    reached = changed("bagel", "noised", "values", np.flatnonzero(own), -2.0)
    assert reached["noised"][own].all()
    span = part.span[0][own][0]
    for stream, moved in reached.items():
        assert not moved[batch[stream].span[0] != span].any()


def test_padding_reaches_nothing():
    batch, _, _ = example("transfusion")
    for stream, field in (("text", "tokens"), ("image", "values")):
        empty = np.flatnonzero(batch[stream].document[0] == 0)
        assert len(empty)
        for other, moved in changed("transfusion", stream, field, empty, 5).items():
            assert not moved[batch[other].document[0] > 0].any()
