"""What each kind of content answers, and the tables of rules that streams and runs name."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from transfusion.errors import UsageError
from transfusion.sequence import Run, Segment, Stream
from transfusion.sequence.batch import empty_batch
from transfusion.sequence.position import POSITIONS
from transfusion.sequence.rows import expand
from transfusion.sequence.spelling import Spelling
from transfusion.sequence.times import TIMES

LATENTS = {"objective": "continuous", "attention": "block", "channels": 3, "budget": 500}
STREAMS = {
    "images": Stream(**LATENTS | {"patch": 2, "grid": (4, 6), "budget": 60}),
    "images behind a time token": Stream(**LATENTS | {"patch": 2, "grid": (4, 6), "budget": 70, "time": "token"}),
    "images of any size": Stream(**LATENTS | {"patch": 2, "items": 4}),
    "a series": Stream(**LATENTS | {"patch": 2, "grid": (6,), "budget": 60}),
    "clips": Stream(**LATENTS | {"patch": 2, "patch_frames": 3, "grid": (6, 4, 2), "budget": 60}),
    "masked codes": Stream(vocabulary=9, grid=(2, 3), objective="masked", attention="block", budget=60),
    "codes one by one": Stream(vocabulary=9, grid=(2, 3), budget=70),
    "scales of codes": Stream(
        vocabulary=9, grid=(3, 3), scales=(1, 3), objective="next_scale", attention="frame", budget=60
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_items_become_tokens_and_tokens_items(name):
    content, rng = STREAMS[name].content, np.random.default_rng(0)
    items = np.stack([content.fake(rng) for _ in range(3)])
    sides = items.shape[1:-1] if content.mixed else ()
    assert items.shape[1:] == content.item_shape(sides) and items.dtype == content.dtype
    held = content.laid(items)
    assert held.shape[2:] == content.token_shape and not held[:, : content.lead].any()
    np.testing.assert_array_equal(content.media(held, sides), items)
    np.testing.assert_array_equal(content.laid(jnp.asarray(items), jnp), held)


@pytest.mark.parametrize("name", STREAMS)
def test_tokens_know_their_places_and_fill_the_fields_of_a_row(name):
    stream, content = STREAMS[name], STREAMS[name].content
    item = content.fake(np.random.default_rng(0))
    segment = Segment("image", item)
    content.check(segment)
    tokens = content.tokens(segment)
    n = len(tokens.places)
    assert content.mixed or n == content.per_item
    assert (tokens.places[: content.lead] == -1).all() and (tokens.places[content.lead :] >= 0).all()
    assert tokens.predictable.tolist() == [0] * content.lead + [1] * (n - content.lead)
    assert len({tuple(place) for place in tokens.places[content.lead :]}) == n - content.lead
    empty = content.empty(2, 7, 3)
    for field, column in tokens.columns.items():
        assert empty[field].shape == (2, 7, *column.shape[1:]) and empty[field].dtype == column.dtype
    assert content.resources("x", n, 1) == {"x": n} | ({"x:items": 1} if not any(stream.grid) else {})


def test_only_streams_with_items_have_places_and_noise_levels():
    batch = empty_batch(tiny.spec(), 1)
    assert batch["text"].place is None and batch["text"].time_low is None and batch["text"].values is None
    assert batch["image"].tokens is None and batch["image"].targets is None


def test_spelled_codes_are_text():
    run = Run("text", opener=tiny.BOI, spelling=Spelling(codes=2, first=1, grids=((1, 2),)))
    spec = tiny.spec({"text": tiny.text_stream()}, {"image": (run,)})
    assert spec.content(run).sides == 2 and spec.streams["text"].content.sides == 0
    document = expand((tiny.words(5), Segment("image", np.array([[0, 1]]))), spec)
    piece = document.pieces["text"]
    assert piece["tokens"].tolist() == [tiny.BOS, 5, tiny.BOI, 1, 2, tiny.EOS]
    assert piece["item"].tolist() == [-1, -1, 1, 1, 1, -1] and document.items == {"text": 1}


# --- the noise level --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMES)
def test_a_time_token_stands_before_the_patches_inside_or_outside_of_their_span(name):
    time = TIMES[name]
    spec = tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream(time=name, budget=20)})
    piece = expand((tiny.picture(np.random.default_rng(0)),), spec).pieces["image"]
    lead = int(time.token)
    assert len(piece["order"]) == 4 + lead
    assert piece["span"].tolist() == [int(time.inside)] * lead + [1] * 4
    assert piece["loss_weight"].tolist() == [0] * lead + [1] * 4


def test_a_time_that_is_none_is_named():
    with pytest.raises(UsageError, match="time: 'tokens' is none of .*did you mean 'token'"):
        tiny.image_stream(time="tokens")


# --- positions --------------------------------------------------------------------------------------------------------


def positions(name: str) -> tuple[list, int]:
    """Of the patches of an image behind one word, and of the word after it."""
    run = Run("image", position=name)
    spec = tiny.spec(layout={"image": (run,)}, axes=3)
    document = expand((tiny.words(5), tiny.picture(np.random.default_rng(0)), tiny.words(6)), spec, begin=False)
    return document.pieces["image"]["position"].tolist(), int(document.pieces["text"]["position"][1, 0])


def test_every_rule_says_where_an_item_is_and_where_the_next_word():
    line = [[i] * 3 for i in (1, 2, 3, 4)]
    placed = [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]]
    wanted = {"advance": (line, 5), "item": ([[1] * 3] * 4, 2), "grid": (placed, 3), "frame": (placed, 2)}
    for name, (patches, after) in wanted.items():
        hold = {"item": "hold"}.get(name, f"{name}_hold")
        assert positions(name) == (patches, after) and positions(hold) == (patches, 1)
        wanted = {**wanted, hold: (patches, 1)}
    assert wanted.keys() == POSITIONS.keys()


def test_edges_inside_a_span_share_the_index_of_an_item_that_has_one():
    def indices(position, boundary):
        run = tiny.image_run(position=position, boundary=boundary)
        piece = expand((tiny.picture(np.random.default_rng(0)), tiny.words(5)), tiny.spec(layout={"image": (run,)}))
        return piece.pieces["text"]["position"][:, 0].tolist()  # BOS, BOI, EOI, word, EOS

    assert indices("item", "inside") == [0, 1, 1, 2, 3]
    assert indices("item", "outside") == [0, 1, 3, 4, 5]
    assert indices("advance", "inside") == indices("advance", "outside") == [0, 1, 6, 7, 8]
    assert indices("hold", "inside") == [0, 1, 1, 1, 2]


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_text_has_neither_frames_nor_places():
    with pytest.raises(UsageError, match="'frame' is for clips"):
        tiny.text_stream(attention="frame")
    with pytest.raises(UsageError, match="'grid' is for items; a token of text has no place"):
        tiny.spec(layout={"text": (Run("text", position="grid"),)})


def test_a_stream_is_the_same_whether_or_not_it_was_asked_for_its_content():
    asked, other = tiny.image_stream(), tiny.image_stream()
    assert asked.content is asked.content
    assert asked == other and hash(asked) == hash(other)
    assert dataclasses.replace(asked, grid=(2, 2)).content.per_item == 1


def test_the_tables_of_a_config_load_no_jax():
    loads = "import transfusion.sequence, sys; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
