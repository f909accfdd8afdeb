"""Streams of image codes: from documents to packed rows, and who sees whom in them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BOI, BOS, EOI, EOS

from transfusion.errors import UsageError
from transfusion.sequence import MASKED, Released, Segment, SequenceSpec, Stream
from transfusion.sequence.batch import batch_spec
from transfusion.sequence.fakes import fake_batch
from transfusion.sequence.masks import metadata, see
from transfusion.sequence.rows import assemble, expand

K = 6
SCALES = (1, 2)
STREAMS = {
    "masked": Stream(vocabulary=K, grid=(2, 3), budget=24, objective="masked", attention="block"),
    "next_scale": Stream(
        vocabulary=K, grid=(2, 2), scales=SCALES, channels=2, budget=25, objective="next_scale", attention="frame",
        embed="scales",
    ),
    "next_token": Stream(vocabulary=K, grid=(2, 3), channels=2, budget=28, embed="codes", head="mlp"),
}  # fmt: skip


def spec(objective: str) -> SequenceSpec:
    boundary = "inside" if objective == "masked" else "outside"
    run = tiny.image_run(boundary=boundary)
    layout = {"image": (run,), "image/context": (dataclasses.replace(run, time_low=1.0, loss=False),)}
    return tiny.spec({"text": tiny.text_stream(budget=40), "image": STREAMS[objective]}, layout)


def codes(stream: Stream, rng: np.random.Generator, role: str = "both") -> Segment:
    return Segment("image", rng.integers(0, K, stream.content.item_shape(), np.int32), role)


@st.composite
def documents(draw, objective):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = draw(st.lists(st.lists(st.sampled_from(["words", "context", "both"]), max_size=4), min_size=1, max_size=2))
    part = {
        "words": lambda: tiny.words(*rng.integers(1, 9, rng.integers(1, 4))),
        "context": lambda: codes(STREAMS[objective], rng, "context"),
        "both": lambda: codes(STREAMS[objective], rng),
    }
    return [tuple(part[kind]() for kind in kinds) for kinds in shapes]


def plain(document, objective):
    """A document in reading order: (stream, id or None for a start token, block or 0, target or None)."""
    out, block = [("text", BOS, 0, None)], 0
    for segment in document:
        if segment.kind == "text":
            out += [("text", int(i), 0, None) for i in segment.value]
            continue
        block += 1
        edge = block if objective == "masked" else 0
        flat = [int(i) for i in segment.value.reshape(-1)]
        drawn = segment.role != "context"
        first = len(out)
        out.append(("image", None, 0, None) if objective == "next_token" else ("text", BOI, edge, None))
        if drawn:
            out[first - 1] = (*out[first - 1][:3], BOI)
        for place, code in enumerate(flat):
            later = objective == "next_scale" and place >= 1  # the second of two scales
            inside = {"masked": block, "next_scale": block + later, "next_token": 0}[objective]
            out.append(("image", code, inside, code if drawn and objective != "next_token" else None))
            if drawn and objective == "next_token":
                out[-2] = (*out[-2][:3], code)
        block += objective == "next_scale"
        out.append(("text", EOI, (block if objective == "masked" else 0), None))
    out.append(("text", EOS, 0, None))
    # Text predicts the text that follows it.
    return [
        (*here[:3], after[1] if here[0] == after[0] == "text" and after[1] not in (BOI, EOI) else here[3])
        for here, after in zip(out, [*out[1:], ("", 0, 0, None)], strict=True)
    ]


@pytest.mark.parametrize("objective", STREAMS)
def test_rows_hold_what_the_rules_say(objective):
    of = spec(objective)

    @settings(max_examples=20, deadline=None)
    @given(documents(objective))
    def check(row):
        try:
            batch = assemble([[expand(document, of) for document in row]], of)
        except UsageError:  # more than the row holds
            return
        joined = {
            name: np.concatenate([np.asarray(getattr(batch[s], name))[0] for s in of.streams])
            for name in ("document", "order", "span", "tokens", "targets", "loss_weight")
        }
        place = np.concatenate([np.zeros(len(batch["text"].order[0])), batch["image"].place[0, :, 0]])
        tokens = [token for document in row for token in plain(document, objective)]
        at = np.concatenate([np.flatnonzero(joined["document"] == d + 1) for d in range(len(row))])
        at = at[np.lexsort((joined["order"][at], joined["document"][at]))]
        assert len(at) == len(tokens) == (joined["document"] > 0).sum()
        spans = {}
        for (stream, token, block, target), i in zip(tokens, at, strict=True):
            assert (i >= of.streams["text"].budget) == (stream == "image")
            assert token is None and place[i] == -1 or joined["tokens"][i] == token
            assert bool(joined["loss_weight"][i]) == (target is not None)
            assert target is None or joined["targets"][i] == target
            same = spans.setdefault((joined["document"][i], block), joined["span"][i])
            assert same == joined["span"][i] and (same > 0) == (block > 0)
        assert len(set(spans.values()) - {0}) == sum(block > 0 for _, block in spans)
        seen = np.asarray(see(*[metadata(jax.tree.map(jnp.asarray, batch), of)] * 2)[0])[np.ix_(at, at)]
        number = np.repeat(np.arange(len(row)), [len(plain(d, objective)) for d in row])
        for q, (_, _, inside, _) in enumerate(tokens):
            for k, (_, _, block, _) in enumerate(tokens):
                same = number[q] == number[k]
                assert seen[q, k] == (same and (k <= q or (inside > 0 and inside == block)))

    check()


def test_masked_items_say_how_clean_they_are_and_scales_where_a_code_is():
    rng = np.random.default_rng(0)
    for role, low in (("context", 1.0), ("both", 0.0)):
        piece = expand((codes(STREAMS["masked"], rng, role),), spec("masked")).pieces["image"]
        assert piece["time_low"].tolist() == [low] and piece["place"].tolist()[:4] == [[0, 0], [0, 1], [0, 2], [1, 0]]
    piece = expand((codes(STREAMS["next_scale"], rng),), spec("next_scale")).pieces["image"]
    assert piece["place"].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("objective", STREAMS)
def test_fakes_have_the_shapes_of_batches(objective):
    of = spec(objective)
    fake = fake_batch(of, 2)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), batch_spec(of, 2)) == jax.tree.map(
        lambda a: (a.shape, a.dtype), fake
    )
    assert fake["image"].loss_weight.sum() > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 2), np.int32), "whole numbers [2, 3], not int32 [3, 2]"),
        (np.zeros((2, 3), np.float32), "whole numbers [2, 3], not float32"),
        (np.full((2, 3), K), "outside of 0 to 5"),
        (np.full((2, 3), MASKED), "outside of 0 to 5"),
    ],
)
def test_codes_that_do_not_fit_are_told(value, message):
    with pytest.raises(UsageError) as error:
        expand((Segment("image", value),), spec("masked"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 2}, "a code is a token"),
        ({"released": Released(tied=True)}, "not tied"),
        ({"attention": "frame"}, "go together"),
        ({"scales": (1, 2), "attention": "frame"}, "not the square of the last"),
        ({"budget": 20}, "an item's 6 tokens"),
    ],
)
def test_streams_of_codes_that_cannot_work_are_told(changes, message):
    with pytest.raises(UsageError) as error:
        dataclasses.replace(STREAMS["masked"], **changes)
    assert message in str(error.value)
