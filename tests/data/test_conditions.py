"""Roles of images, examples of editing, and the dropout of their three conditions."""

import dataclasses

import numpy as np
import pytest

from transfusion import layouts
from transfusion.data import documents
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.pipeline import Pipeline
from transfusion.errors import UsageError
from transfusion.sequence import Segment, SequenceSpec, Stream, text
from transfusion.sequence.rows import expand

RECORD = {"id": "x", "image": np.arange(64, dtype=np.uint8).reshape(8, 8, 1), "caption": "a word"}
EDITING = DataConfig(edit=1.0, drop_caption=0.1, drop_conditions={"semantic": 0.5, "clean": 0.1})


def bagel(latents: int = 8) -> SequenceSpec:
    """BAGEL's streams for images of 8 x 8; `latents` is the side of what is drawn."""
    drawn = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added", channels=1, patch=2,
        grid=(latents, latents), budget=64,
    )  # fmt: skip
    seen = dataclasses.replace(
        drawn, embed="vit", head="none", objective="none", time="none", source="pixels", patch=4, grid=(8, 8), budget=16
    )
    clean = dataclasses.replace(drawn, parts="noised", objective="none")
    streams = {"text": Stream(vocabulary=text.VOCABULARY, budget=96), "noised": drawn, "clean": clean, "semantic": seen}
    return SequenceSpec(streams, layouts.bagel(), text.BOS, text.EOS)


def half(kind: str, image: np.ndarray) -> np.ndarray:
    """A codec of half the side."""
    return documents.pixel_latents(image)[::2, ::2]


def in_order(piece) -> tuple[list, list]:
    """(ids, rotary indices) of a document's text stream."""
    return piece["tokens"].tolist(), piece["position"][:, 0].tolist()


def test_each_stream_reads_its_own_source():
    pieces = expand(documents.to_document(RECORD, documents.DocumentChoice(both=True), half, True), bagel(4)).pieces
    np.testing.assert_array_equal(pieces["noised"]["values"], pieces["clean"]["values"])
    assert pieces["clean"]["values"].shape == (4, 4) and pieces["semantic"]["values"].shape == (4, 16)
    whole = documents.pixel_latents(RECORD["image"])
    np.testing.assert_array_equal(pieces["semantic"]["values"][0], whole[:4, :4].reshape(-1))
    np.testing.assert_array_equal(pieces["clean"]["values"][0], whole[::2, ::2][:2, :2].reshape(-1))
    with pytest.raises(UsageError, match="does not fit the stream's grid"):  # without pixels the latents are read
        expand(documents.to_document(RECORD, documents.DocumentChoice(both=True), half), bagel(4))


def test_roles_of_images():
    def roles(**choice):
        return [s.role for s in documents.to_document(RECORD, documents.DocumentChoice(**choice)) if s.kind == "image"]

    assert roles() == ["target"] and roles(caption_first=False) == ["context"]
    assert roles(both=True) == roles(both=True, caption_first=False) == ["both"]
    assert roles(edit="negative") == ["context", "target"] and roles(edit="negative", both=True) == ["context", "both"]


@pytest.mark.parametrize("edit", documents.EDITS)
def test_examples_of_editing_say_what_was_done(edit):
    before, words, after = documents.to_document(RECORD, documents.DocumentChoice(edit=edit))
    assert text.decode(words.value) == edit
    np.testing.assert_array_equal(after.value, documents.pixel_latents(documents.EDITS[edit](RECORD["image"])))
    assert not np.array_equal(after.value, before.value)


def test_shares_of_dropped_conditions():
    choices = [documents.choose_document(RECORD, EDITING, (3, i)) for i in range(4000)]
    assert {choice.edit for choice in choices} == set(documents.EDITS)
    shares = {name: np.mean([name in c.dropped for c in choices]) for name in ("semantic", "clean")}
    shares["text"] = np.mean([not c.caption for c in choices])
    assert shares == pytest.approx({"semantic": 0.5, "clean": 0.1, "text": 0.1}, abs=0.025)
    both = np.mean([set(c.dropped) == {"semantic", "clean"} for c in choices])
    assert both == pytest.approx(0.05, abs=0.015)  # one does not decide about the other
    assert choices[:50] == [documents.choose_document(RECORD, EDITING, (3, i)) for i in range(50)]
    # Only what is drawn from an image can lack it: captions keep both.
    plain = dataclasses.replace(EDITING, edit=0.0)
    assert not any(documents.choose_document(RECORD, plain, (3, i)).dropped for i in range(200))


def test_earlier_images_are_clean_and_no_targets_with_the_probability_that_is_asked():
    """Show-o2: each image has a noise level of its own, but with probability 0.7 the earlier one is clean."""
    stream = dataclasses.replace(bagel().streams["noised"], budget=32)
    streams = {"text": Stream(vocabulary=text.VOCABULARY, budget=96), "image": stream}
    spec = SequenceSpec(streams, layouts.showo2(), text.BOS, text.EOS)
    config = dataclasses.replace(EDITING, drop_conditions={}, draw_earlier=0.3)
    choices = [documents.choose_document(RECORD, config, (3, i)) for i in range(4000)]
    drawn = np.array([choice.draw_earlier for choice in choices])
    assert drawn.mean() == pytest.approx(0.3, abs=0.025)
    # It decides nothing else, and nothing else decides it.
    fixed = [
        documents.choose_document(RECORD, dataclasses.replace(config, draw_earlier=0.0), (3, i)) for i in range(4000)
    ]
    assert [dataclasses.replace(choice, draw_earlier=False) for choice in choices] == fixed
    more = dataclasses.replace(EDITING, draw_earlier=0.3, drop_caption=0.9)
    assert [documents.choose_document(RECORD, more, (3, i)).draw_earlier for i in range(100)] == drawn[:100].tolist()
    for choice in {choice.draw_earlier: choice for choice in choices}.values():
        piece = expand(documents.to_document(RECORD, choice), spec).pieces["image"]
        assert piece["time_low"].tolist() == [0.0 if choice.draw_earlier else 1.0, 0.0]
        assert piece["loss_weight"].reshape(2, 16).mean(1).tolist() == [float(choice.draw_earlier), 1.0]
    # An image that only its caption follows is clean, and the last one of all is never.
    read, made = (documents.DocumentChoice(caption_first=first) for first in (False, True))
    low = [expand(documents.to_document(RECORD, c), spec).pieces["image"]["time_low"].tolist() for c in (read, made)]
    assert low == [[1.0], [0.0]]
    with pytest.raises(UsageError, match="draw_earlier=1.5"):
        DataConfig(draw_earlier=1.5).validate()


def test_dropped_images_take_their_indices_and_a_dropped_text_does_not():
    image = documents.pixel_latents(RECORD["image"])
    words = Segment("text", np.array([1, 2, 3], np.int32))

    def read(dropped, *between):
        document = (Segment("image", image, "context", dropped=dropped), *between, Segment("image", image, "target"))
        return expand(document, bagel()).pieces

    full, without_vit, without_both = (read(d, words) for d in ((), ("semantic",), ("semantic", "clean")))
    edges = [text.BOI, text.EOI]
    tail = [1, 2, 3, *edges, text.EOS]
    assert in_order(full["text"]) == ([text.BOS, *edges, *edges, *tail], [0, 1, 1, 2, 2, 3, 4, 5, 6, 6, 6])
    assert in_order(without_vit["text"]) == ([text.BOS, *edges, *tail], [0, 1, 1, 3, 4, 5, 6, 6, 6])
    assert in_order(without_both["text"]) == ([text.BOS, *tail], [0, 3, 4, 5, 6, 6, 6])
    assert "semantic" not in without_vit and "clean" in without_vit and "clean" not in without_both
    for pieces in (full, without_vit, without_both):
        assert set(pieces["noised"]["position"][:, 0]) == {6}
    assert set(read(())["noised"]["position"][:, 0]) == {3}


def test_the_text_before_a_drawing_is_trained_to_open_it():
    image = documents.pixel_latents(RECORD["image"])
    words = Segment("text", np.array([1, 2], np.int32))

    def openers(role, layout=None):
        spec = bagel() if layout is None else dataclasses.replace(bagel(), layout=layout, axes=3)
        piece = expand((words, Segment("image", image, role), words), spec).pieces["text"]
        opens = (piece["targets"] == text.BOI) & (piece["loss_weight"] > 0)
        assert set(piece["tokens"][opens]) <= {2}
        # The text after an image is predicted from its last closer, and none from within the private copy.
        assert not (piece["loss_weight"] * piece["private"]).any()
        after = np.flatnonzero(piece["tokens"] == text.EOI)[-1]
        assert piece["loss_weight"][after] == (role != "target") and piece["targets"][after] == (role != "target")
        return int(opens.sum())

    for layout in (None, layouts.mogao()):
        spec_roles = ("both", "context") if layout else ("both", "target", "context")
        assert [openers(role, layout) for role in spec_roles] == [1] * (len(spec_roles) - 1) + [0]


def test_dropout_resumes_where_it_was_and_knows_its_streams():
    class Images:
        def __len__(self):
            return 30

        def __getitem__(self, i):
            return RECORD | {"id": str(i)}

    config = dataclasses.replace(EDITING, edit=0.6, both=0.2, sources={"images": SourceConfig()}, prefetch=0)
    opened = {"images": Images()}
    whole, first = (Pipeline(config, bagel(), 2, opened=opened) for _ in range(2))
    batches = [next(whole) for _ in range(6)]
    for _ in range(3):
        next(first)
    again = Pipeline(config, bagel(), 2, opened=opened)
    again.restore(first.state())
    for batch in batches[3:]:
        other = next(again)
        for name in batch:
            np.testing.assert_array_equal(batch[name].order, other[name].order)
            np.testing.assert_array_equal(batch[name].position, other[name].position)
    wrong = dataclasses.replace(config, drop_conditions={"semantics": 0.5})
    with pytest.raises(UsageError, match="drop_conditions: no stream 'semantics' .*'semantic'"):
        Pipeline(wrong, bagel(), 2, opened=opened)
