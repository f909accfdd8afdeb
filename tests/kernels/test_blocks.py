"""Which blocks a row needs: none that holds an allowed pair is left out, and few others are computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_streams import by_streams

from transfusion.data.packing import Lane
from transfusion.kernels import runs
from transfusion.kernels.plan import FULL, NONE, PARTIAL, Cut, plan
from transfusion.programs import load_experiment
from transfusion.sequence import Segment
from transfusion.sequence.masks import intervals, metadata, see
from transfusion.sequence.rows import assemble, expand
from transfusion.tasks import make_task


def blocks_of(mask, q: Cut, k: Cut):
    """The mask [B, L, L] in blocks [B, n, m, T, T]; what fills slices up is forbidden."""
    filled = q.filled(jnp.swapaxes(k.filled(jnp.swapaxes(mask, 1, 2)), 1, 2))
    apart = filled.reshape(len(mask), q.blocks, q.size, k.blocks, k.size)
    return apart.swapaxes(2, 3)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def planned(tokens, may, q, k):
    """The kinds of blocks, the runs both ways, and the mask in blocks."""
    may = None if may is None else np.array(may, bool)
    made = plan(intervals(tokens, tokens, may), q, k)
    return made.kinds, runs.of_queries(made), runs.of_keys(made), blocks_of(see(tokens, tokens, may), q, k)


def visited(found: runs.Runs, at) -> list[int]:
    """The blocks that an outer block visits, one after the other."""
    steps = np.arange(found.counts[at][1])[:, None]
    return (steps[:, 0] + (found.jumps[at] * (steps >= found.at[at])).sum(-1)).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, ((1, 0, 1), (1, 1, 1), (0, 1, 1))]))
def test_kinds_of_blocks_are_right(seed, may):
    sizes = (19, 8, 30)
    tokens = by_streams(np.random.default_rng(seed), 3, sizes)
    made = jax.device_get(planned(tokens, may, Cut(sizes, 8), Cut(sizes, 4)))
    kinds, of_queries, of_keys, allowed = made
    assert not allowed[kinds == NONE].any()
    assert allowed[kinds == FULL].all()
    for found, each in ((of_queries, kinds), (of_keys, kinds.swapaxes(1, 2))):
        for at in np.ndindex(each.shape[:-1]):
            blocks, full = visited(found, at), found.counts[at][0]
            assert blocks[:full] == np.flatnonzero(each[at] == FULL).tolist()
            assert blocks[full:] == np.flatnonzero(each[at] == PARTIAL).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_more_runs_than_are_listed_are_computed_with_all_between_them(seed):
    """Every needed block is visited once, and as a full one only if it is."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([FULL, PARTIAL, NONE], (2, 3, 60), p=rng.dirichlet(np.ones(3)))
    found = jax.device_get(jax.jit(runs.runs)(kinds))
    for at in np.ndindex(2, 3):
        blocks, needed = visited(found, at), np.flatnonzero(kinds[at] != NONE)
        assert len({*blocks}) == len(blocks) and {*needed} <= {*blocks} <= {*range(60)}
        assert (kinds[at][blocks[: found.counts[at][0]]] == FULL).all()
        edges = np.diff(np.concatenate([[NONE], kinds[at], [NONE]]))
        if np.count_nonzero(edges) <= runs.MOST:
            assert {*needed} == {*blocks}


def test_long_rows_are_looked_at_in_parts(monkeypatch):
    sizes = (19, 8, 30)
    tokens = by_streams(np.random.default_rng(3), 2, sizes)

    def both(tokens):
        made = plan(intervals(tokens, tokens), Cut(sizes, 4), Cut(sizes, 2))
        return runs.of_queries(made), runs.of_keys(made)

    whole = jax.jit(both)(tokens)
    monkeypatch.setattr(runs, "PAIRS", 120)
    parts = jax.jit(lambda tokens: both(tokens))(tokens)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_slices_are_filled_up_and_emptied():
    cut = Cut((5, 0, 8, 3), 4)
    assert cut.starts.tolist() == [0, 4, 5, 9, 13] and cut.counts.tolist() == [4, 1, 4, 4, 3]
    assert [cut.start_of(block) for block in range(5)] == cut.starts.tolist()
    x = jnp.arange(1, 17).reshape(1, 16)
    filled = cut.filled(x, -1)
    assert filled.tolist() == [[1, 2, 3, 4, 5, -1, -1, -1, *range(6, 14), 14, 15, 16, -1]]
    np.testing.assert_array_equal(cut.emptied(filled), x)


# --- packed rows of configs -------------------------------------------------------------------------------------------


def documents(spec, image: str, caption: float, text: float, texts: float, edits: float):
    """Random documents: texts, captioned images, and images that are edited."""
    rng = np.random.default_rng(0)
    stream, seen = spec.streams[image], spec.streams.get("semantic")

    def words(n):
        return Segment("text", rng.integers(1, 200, max(1, int(n))).astype(np.int32))

    def picture(role):
        pixels = None if seen is None else np.zeros((*seen.grid, seen.channels), np.float32)
        return Segment("image", np.zeros((*stream.grid, stream.channels), np.float32), role, pixels=pixels)

    def make(_):
        if rng.random() < texts:
            return expand((words(min(rng.lognormal(np.log(text), 1.0), 3 * spec.budgets["text"])),), spec)
        told = words(rng.lognormal(np.log(caption), 0.4))
        if rng.random() < edits:
            return expand((picture("context"), told, picture("target")), spec)
        return expand((told, picture("target")) if rng.random() < 0.7 else (picture("context"), told), spec)

    return make


def scaled(spec, length: int):
    """The spec with budgets in the same proportions, whose rows have `length` tokens."""
    total, streams = sum(stream.budget for stream in spec.streams.values()), {}
    for name, stream in spec.streams.items():
        whole = stream.tokens_per_item if stream.content.aligned else 1
        streams[name] = dataclasses.replace(
            stream, budget=max(round(stream.budget * length / total / whole), 1) * whole
        )
    others = sum(stream.budget for name, stream in streams.items() if name != "text")
    streams["text"] = dataclasses.replace(streams["text"], budget=length - others)
    return dataclasses.replace(spec, streams=streams)


@pytest.mark.parametrize(
    ("config", "image", "kinds"),
    [
        ("transfusion_paper.py:0.76B", "image", (120, 900, 0.1, 0.0)),
        ("bagel.py:7b", "noised", (120, 900, 0.2, 0.4)),
        ("emoji.py", "image", (25, 200, 0.0, 0.0)),
    ],
)
def test_computed_blocks_are_those_that_hold_an_allowed_pair(config, image, kinds):
    spec = scaled(make_task(load_experiment(f"configs/{config}")).spec, 4096)
    lane = Lane(documents(spec, image, *kinds), spec.budgets)
    rows = [[placed.item for placed in lane.next_row()] for _ in range(8)][-1:]
    tokens = metadata(assemble(rows, spec), spec)
    cut = Cut(tuple(stream.budget for stream in spec.streams.values()), 128)
    kinds, of_queries, of_keys, allowed = jax.device_get(planned(tokens, spec.visibility, cut, cut))
    ideal = allowed.any((-1, -2))
    assert not (ideal & (kinds == NONE)).any()
    for computed in (of_queries.counts[..., 1], of_keys.counts[..., 1]):
        assert computed.sum() <= 1.02 * ideal.sum()
    assert ideal.mean() < 0.3
