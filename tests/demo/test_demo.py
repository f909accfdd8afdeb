"""The demo: what is watched is what the model draws, what is shown of its attention is what it computes, and files of
strangers are judged before they are decoded."""

import logging

import jax
import numpy as np
import pytest
from PIL import Image

import transfusion
from transfusion.demo import maps
from transfusion.demo.__main__ import first_answer
from transfusion.demo.answers import WISHES, answer, apart, document_of, usual
from transfusion.demo.inside import look_inside, weights_of
from transfusion.demo.uploads import read_picture
from transfusion.errors import UsageError
from transfusion.model.attention import masked_attention


@pytest.fixture(scope="module")
def run(tiny_run):
    return transfusion.load_run(tiny_run)


def test_the_picture_that_is_watched_is_the_picture_that_is_drawn(run):
    moments = list(answer(run, run.segments("a"), "draw", 3, steps=3, guidance=1.0, max_tokens=4))
    way = [moment for moment in moments if moment.noisy is not None]
    (drawn,) = moments[-1].parts
    assert [round(moment.time, 3) for moment in way] == [0.0, 0.333, 0.667, 1.0]
    np.testing.assert_array_equal(way[-1].noisy, drawn)
    np.testing.assert_array_equal(run.draw("a", seed=3, steps=3, guidance=1.0), drawn)
    assert way[0].noisy.std() > 0 and not np.array_equal(way[0].noisy, drawn)
    assert set(WISHES) == {"the model decides", "draw", "write"}


def test_what_the_page_compiles_while_it_is_made_answers_the_first_message(run):
    first_answer(run)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr(logging.getLogger("jax._src.dispatch"), "handle", lambda record: compiled.append(record.msg))
        said = document_of(run, [("user", ["some words of a visitor"])], False)
        (*_, last) = answer(run, said, next(iter(WISHES)), 7, **usual(run), **apart(run))
    assert last.parts and not [words for words in compiled if "compilation" in words]


def test_the_attention_that_is_shown_obeys_the_mask(run):
    found = look_inside(run, document_of(run, [("user", ["ab", np.zeros((8, 8, 1), np.uint8)])], False))
    layers, heads = run.task.model.layers, run.task.model.heads
    length = len(found.labels)
    assert found.weights.shape == (layers, heads, length, length)
    assert found.labels == ["BOS", "a", "b", "open", *["image"] * 16, "close"]
    np.testing.assert_allclose(found.weights.astype(np.float32).sum(-1), 1, atol=4e-3)
    seen = found.weights.max((0, 1)) > 0
    assert not np.triu(seen[:4], 1).any() and seen[4:20, 4:20].all() and not seen[4:20, 20].any()
    assert maps.attention_map(found, 1, 0).size[0] > 100 and maps.mask_of(found).size[0] > 100
    with pytest.raises(UsageError, match="tokens: too many to show"):
        look_inside(run, run.segments("long " * 200))


def test_turns_in_a_chat_template_are_read_as_a_conversation_reads_them(run):
    turns = [("user", ["hello"]), ("assistant", ["hi"]), ("user", ["again"])]
    ids = [token for segment in document_of(run, turns, True) for token in segment.value]
    assert run.task.tokenizer.decode(ids) == "User: hello\nAssistant: hi\nUser: again\nAssistant: "
    plain = [token for segment in document_of(run, turns, False) for token in segment.value]
    assert run.task.tokenizer.decode(plain) == "hellohiagain"


def test_recorded_weights_are_those_of_the_reference():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, heads, 4)) for i, heads in enumerate((4, 2, 2)))
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (2, 5, 5)).at[0, 0].set(False)
    weights = np.asarray(weights_of(q, k, mask))
    of_heads = np.repeat(np.asarray(v), 2, axis=2)
    expected = np.einsum("bhqs,bshk->bqhk", weights, of_heads)
    np.testing.assert_allclose(masked_attention(q, k, v, mask), expected, atol=1e-5)


def test_uploads_are_judged_before_they_are_decoded(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "good.png")
    assert read_picture(tmp_path / "good.png", 600).size == (30, 20)
    with pytest.raises(UsageError, match="30x20 pixels: at most 599"):
        read_picture(tmp_path / "good.png", 599)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # some kilobytes that would become 400 million pixels
    with pytest.raises(UsageError, match=r"20000x20000 pixels|no picture"):
        read_picture(tmp_path / "bomb.png", 4_000_000)
    (tmp_path / "not.png").write_text("<svg/>")
    cut = (tmp_path / "good.png").read_bytes()[:60]
    (tmp_path / "cut.png").write_bytes(cut)
    for name in ("not.png", "cut.png"):
        with pytest.raises(UsageError, match="no picture that can be read"):
            read_picture(tmp_path / name, 600)
