"""A mixture of all kinds of records (texts, pictures of many sizes, clips, sounds, pages, conversations, edits, scenes,
pairs of media) fills its rows, and goes on after an interruption at any batch with the same batches."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.data.pipeline import Pipeline

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "experiments" / "packing"))

import full_rows  # noqa: E402
import mixture  # noqa: E402

BATCHES = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    mixture.write(folder, 24)
    return mixture.data(folder)


@pytest.fixture(scope="module")
def sizes(data):
    return full_rows.budgets(full_rows.mean_cost(data, 540, seed=3), 52)


def opened(data, sizes, **changes) -> Pipeline:
    config, encode = mixture.changed(data, **changes), full_rows.CODECS.encode
    return Pipeline(config, mixture.spec(sizes), 2, seed=3, encode=encode)


@pytest.fixture(scope="module")
def whole(data, sizes):
    """The batches of a run, the states before and after each, and what it has packed."""
    with opened(data, sizes) as pipeline:
        states, batches = [json.dumps(pipeline.state())], []
        for _ in range(BATCHES):
            batches.append(next(pipeline))
            states.append(json.dumps(pipeline.state()))
        return batches, states, pipeline.stats()


def test_a_mixture_of_all_kinds_fills_95_percent_of_the_budgets(data, sizes, whole):
    batches, _, found = whole
    assert found["bad"] == 0 and set(found["efficiency"]) == {"text", "image", "video", "sound", "all"}
    # A budget is a whole number of items: a stream may be a clip too large, all together are not.
    assert found["efficiency"]["all"] >= 0.95 and min(found["efficiency"].values()) >= 0.85, found["efficiency"]
    rows = [pair for batch in batches for pair in zip(batch["image"].item, batch["image"].document, strict=True)]
    lengths = {n for item, document in rows for n in np.unique(item[document > 0], return_counts=True)[1]}
    assert len(lengths) > 1  # images of several sizes


@given(cut=st.integers(0, BATCHES - 1), ahead=st.sampled_from([(0, 0), (2, 0), (1, 2)]))
@settings(max_examples=5, deadline=None)
def test_a_run_that_is_cut_anywhere_goes_on_with_the_same_batches(data, sizes, whole, cut, ahead):
    batches, states, _ = whole
    prefetch, threads = ahead
    with opened(data, sizes, prefetch=prefetch, read_threads=threads) as pipeline:
        pipeline.restore(json.loads(states[cut]))
        for number in range(cut, min(cut + 2, BATCHES)):
            jax.tree.map(np.testing.assert_array_equal, next(pipeline), batches[number])
            assert json.dumps(pipeline.state()) == states[number + 1]
