"""Pairs are counted exactly as the attention rule allows them, and the FLOPs of a batch follow from them."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.programs import load_experiment
from transfusion.sequence import masks
from transfusion.sequence.fakes import fake_batch
from transfusion.sequence.pairs import allowed_pairs, pairs_of_one_document
from transfusion.sequence.rows import assemble, expand

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Private copies, `may`, frames of a clip, learned queries, start tokens, several scales, mixed sizes, codes as text.
FORMS = (
    "bagel.py:debug", "mogao.py:debug", "emoji.py:debug", "video.py:world_debug", "janusflow.py:debug",
    "showo2.py:debug", "var.py:debug", "omnigen.py:debug", "connector.py:debug", "emu3.py:debug", "llamagen.py:debug",
)  # fmt: skip


@functools.cache
def spec_of(form):
    return load_experiment(CONFIGS / form).spec


def by_the_rule(batch, spec, queries, keys, causal):
    """Sums the part of the table of `see` that a trunk's queries and keys are."""
    tokens = jax.tree.map(np.asarray, masks.metadata(batch, spec))
    of = {name: tokens.stream[0] == i for i, name in enumerate(spec.streams)}
    alone = functools.reduce(np.logical_or, (of[name] for name in causal), np.zeros(tokens.stream.shape[1], bool))
    tokens = dataclasses.replace(tokens, span=np.where(alone, 0, tokens.span))
    table = np.asarray(masks.see(tokens, tokens, spec.visibility))
    q, k = (functools.reduce(np.logical_or, (of[name] for name in names)) for names in (queries, keys))
    return table[:, q][:, :, k].sum((1, 2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(FORMS), st.data())
def test_pairs_are_those_that_the_rule_allows(seed, form, data):
    spec = spec_of(form)
    some = st.lists(st.sampled_from(list(spec.streams)), min_size=1, unique=True)
    queries, keys, causal = data.draw(some), data.draw(some), data.draw(st.just([]) | some)
    batch = fake_batch(spec, 3, seed)
    empty = assemble([[]], spec)  # a row without documents, as the last of an epoch
    for given_rows in (batch, empty):
        want = by_the_rule(given_rows, spec, queries, keys, causal)
        np.testing.assert_array_equal(allowed_pairs(given_rows, spec, queries, keys, causal), want)


def test_flops_are_of_the_documents_at_hand():
    """Two documents in a row cost what they cost apart, and less than one document of both."""
    task = tiny.task()
    short = tuple(tiny.documents()[0])
    rows = [[short], [short, short], [short + short]]
    one, two, joined = task.flops(assemble([[expand(d, task.spec) for d in row] for row in rows], task.spec))
    empty = task.flops(assemble([[]], task.spec))[0]
    assert two - one == one - empty > 0
    assert joined > two
    assert task.flops_of_one_document() > joined


def test_a_full_row_of_many_documents_has_fewer_pairs_than_one_document():
    for form in FORMS:
        spec = spec_of(form)
        found = allowed_pairs(fake_batch(spec, 8), spec, spec.streams, spec.streams)
        assert found.max() < pairs_of_one_document(spec, spec.streams, spec.streams)
