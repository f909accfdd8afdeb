"""One bad record costs one record: whatever its tokenizer, codec or length does, it is skipped, counted and named."""

import csv
import dataclasses
import json
import logging
import pathlib
import struct
import tarfile
import zlib

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.data import documents
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.examples import make_example, whole_characters
from transfusion.data.packing import Bad
from transfusion.data.pipeline import Pipeline, epoch_batches
from transfusion.errors import PassingError, UsageError
from transfusion.sequence import Run, SequenceSpec, text
from transfusion.sequence.text import TokenizerConfig, open_tokenizer
from transfusion.storage import StorageError

IMAGE = tiny.image_stream(grid=(8, 8), patch=4, budget=16)
SPEC = SequenceSpec(
    {"text": tiny.text_stream(vocabulary=text.VOCABULARY, budget=48), "image": IMAGE},
    {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)},
    text.BOS,
    text.EOS,
)
CONFIG = DataConfig(sources={"mine": SourceConfig()}, prefetch=0, caption_first=1.0, drop_caption=0.0)


class Images:
    """40 images, each with the caption that `captions` has for it."""

    def __init__(self, captions=None, count=40):
        self.captions, self.count = captions or {}, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        caption = self.captions.get(i, f"thing {i}")
        return {"id": f"set/{i}.png", "image": np.full((8, 8, 1), i % 256, np.uint8), "caption": caption}


def pipeline(source, encode=documents.as_pixels, tokenizer=text.BYTES, spec=SPEC, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return Pipeline(config, spec, 2, opened={"mine": source}, encode=encode, tokenizer=tokenizer)


def read(source, batches=60, **changes):
    with pipeline(source, **changes) as data:
        found = [next(data) for _ in range(batches)]
        return found, data.stats()


FAULTS = [
    ValueError("odd"), OSError("unreadable"), EOFError(), RecursionError("too deep"), OverflowError("too large"),
    UnicodeError("no text"), struct.error("short"), csv.Error("field"), tarfile.ReadError("tar"), zlib.error("zlib"),
    UsageError("of another size"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("where", ["codec", "tokenizer"])
def test_a_fault_of_one_record_is_a_bad_record_with_its_name(fault, where, caplog):
    def encode(kind, image):
        if where == "codec" and image[0, 0, 0] == 17:
            raise fault
        return documents.pixel_latents(image)

    def ids(caption):
        if where == "tokenizer" and caption == "thing 17":
            raise fault
        return text.encode(caption)

    with caplog.at_level(logging.WARNING, logger="absl"):
        tokenizer = dataclasses.replace(text.BYTES, encode=ids)
        _, stats = read(Images(), encode=encode, tokenizer=tokenizer, max_bad_share=0.5)
    assert list(stats["errors"]) == ["set/17.png"]
    assert str(fault) in stats["errors"]["set/17.png"] and stats["bad"] > 1
    assert sum("set/17.png" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("error", [AttributeError, TypeError, KeyError, AssertionError, RuntimeError, MemoryError])
def test_a_programming_error_is_not_taken_for_a_bad_record(error):
    def encode(kind, image):
        raise error("a mistake")

    with pytest.raises(error):
        read(Images(), encode=encode)


@pytest.mark.parametrize("change", [{}, {"prefetch": 2}, {"prefetch": 2, "read_threads": 3}, {"cache": False}])
def test_storage_that_is_away_is_no_bad_record_and_reaches_the_caller(change):
    class Away(Images):
        def __getitem__(self, i):
            if i == 17:
                raise StorageError("cannot read set/17.png: the disk is away (5 attempts)")
            return super().__getitem__(i)

    with pipeline(Away(), **change) as data:
        for _ in range(2):  # asked again, it says the same, and nothing hangs
            with pytest.raises(PassingError, match="the disk is away"):
                for _ in range(100):
                    next(data)
        assert data.stats()["bad"] == 0
        state = data.state()  # of the last batch that was delivered: training saves it on the way out
    with pipeline(Images(), **change) as data, pipeline(Images()) as fresh:
        data.restore(json.loads(json.dumps(state)))
        assert data.state()["lanes"] == state["lanes"]
        next(data), next(fresh)
    with pytest.raises(PassingError, match="the disk is away"):
        list(epoch_batches(Away(), CONFIG, SPEC, 2))


def test_a_codec_that_finds_its_storage_away_ends_the_run_too():
    def encode(kind, image):
        raise StorageError("the weights are away")

    with pytest.raises(PassingError, match="the weights"):
        read(Images(), encode=encode)


def test_half_a_character_is_named_and_where_it_stands():
    _, stats = read(Images({5: "cut emoji \ud83d"}), max_bad_share=0.5)
    assert stats["errors"] == {"set/5.png": r"not Unicode text: character 10 is '\ud83d', half of a character"}
    with pytest.raises(UsageError, match="not Unicode text"):  # and so a prompt is one line
        text.encode("\udcff")


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_half_a_character_is_no_text_for_any_tokenizer(kind, tmp_path):
    path = tmp_path / "tokenizer"
    tiny.write_tokenizer(kind, path)
    tokenizer = open_tokenizer(TokenizerConfig(kind=kind, path=str(path)))
    with pytest.raises(UsageError, match="not Unicode text"):
        tokenizer.encode("cut \ud83d")
    assert len(tokenizer.encode("a dark square"))


def test_a_tokenizers_library_may_raise_what_it_likes():
    def fails(caption):
        raise Exception("no such\npiece")  # the bare class, as the library `tokenizers` does

    tokenizer = text._from(fails, str, 300)
    with pytest.raises(UsageError, match=r"the tokenizer cannot encode it \(no such piece\)"):
        tokenizer.encode("a dark square")


# --- longer than a row ------------------------------------------------------------------------------------------------

LONG = "a caption that is longer than the whole budget of forty-eight bytes, number 17"


def test_a_caption_over_the_budget_is_named_with_the_field_that_helps(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        _, stats = read(Images({17: LONG}), max_bad_share=0.5)
    tokens = len(LONG) + 4  # begin and end of the document and of the image
    assert stats["errors"] == {
        "set/17.png": f"takes {tokens} tokens of stream 'text', a row holds 48: "
        f"raise streams.text.budget to {tokens}, or set data.truncate=True"
    }
    assert sum("set/17.png" in record.getMessage() for record in caplog.records) == 1  # not once per epoch


def test_it_is_logged_once_though_the_data_is_restored_in_between(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"), pipeline(Images({17: LONG}), max_bad_share=0.5) as data:
        for _ in range(3):
            for _ in range(30):
                next(data)
            data.restore(data.state())
    assert sum("set/17.png" in record.getMessage() for record in caplog.records) == 1


def test_other_budgets_get_advice_that_fits():
    record = Images()[3]
    narrow = dataclasses.replace(SPEC, streams=SPEC.streams | {"image": dataclasses.replace(IMAGE, budget=4)})
    big = {**record, "image": np.zeros((16, 16, 1), np.uint8)}
    mixed = dataclasses.replace(IMAGE, grid=(0, 0), items=3, budget=12, table="sincos")
    loose = dataclasses.replace(SPEC, streams=SPEC.streams | {"image": mixed})
    bad = make_example(big, documents.DocumentChoice(), loose)
    assert bad.error == "takes 16 tokens of stream 'image', a row holds 12: raise streams.image.budget to 16"
    assert not isinstance(make_example(record, documents.DocumentChoice(), narrow), Bad)
    bad = make_example({"id": "a", "text": LONG}, documents.DocumentChoice(), SPEC, split_text=False)
    assert bad.name == "a" and bad.error.endswith("or set data.split_text=True")
    assert not isinstance(make_example({"id": "a", "text": LONG}, documents.DocumentChoice(), SPEC), Bad)


def captions_of(batches):
    for batch in batches:
        tokens, document = batch["text"].tokens, batch["text"].document
        for row in range(len(tokens)):
            for number in range(1, document[row].max() + 1):
                yield text.decode(tokens[row][document[row] == number])


def test_truncate_cuts_a_caption_at_a_whole_character_and_counts():
    snowmen = "\N{SNOWMAN}" * 30  # three bytes each; a row has room for 44
    batches, stats = read(Images({17: LONG, 18: snowmen}), truncate=True)
    found = {caption for caption in captions_of(batches) if not caption.startswith("thing")}
    assert found == {LONG[:44], "\N{SNOWMAN}" * 14}
    assert stats["bad"] == 0 and stats["truncated"] > 2
    _, stats = read(Images({17: "\N{SNOWMAN}"}, 20), truncate=True)
    assert stats["truncated"] == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(min_size=1, max_size=60), st.integers(0, 80))
def test_whole_characters_never_end_in_a_broken_one(caption, room):
    caption = "".join(c for c in caption if c != "\ufffd" and not 0xD800 <= ord(c) < 0xE000)
    ids = whole_characters(text.encode(caption), room, text.BYTES)
    assert len(ids) <= room and caption.startswith(text.decode(ids))
    assert room - len(ids) < 4 or len(ids) == len(text.encode(caption))


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_truncate_keeps_characters_of_a_tokenizer_whole(kind, tmp_path):
    path = pathlib.Path(tmp_path, "tokenizer")
    tiny.write_tokenizer(kind, path)
    tokenizer = open_tokenizer(TokenizerConfig(kind=kind, path=str(path)))
    caption = "\N{GRINNING FACE}\u4f60" * 9
    ids = tokenizer.encode(caption)
    for room in range(len(ids)):
        assert "\ufffd" not in tokenizer.decode(whole_characters(ids, room, tokenizer))


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=120).filter(str.strip)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    captions=st.dictionaries(st.integers(0, 5), WORDS | st.just("\ud83d"), max_size=6),
    truncate=st.booleans(), split=st.booleans(), budget=st.integers(8, 60), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_captions_pack_or_are_named(captions, truncate, split, budget, seed):
    spec = dataclasses.replace(SPEC, streams=SPEC.streams | {"text": tiny.text_stream(vocabulary=264, budget=budget)})
    config = dataclasses.replace(CONFIG, truncate=truncate, split_text=split, max_bad_share=1.0, caption_first=0.5)
    many = Images({i: captions[i % 6] for i in range(96) if i % 6 in captions}, 96)  # of few, shuffling is slow
    data = Pipeline(config, spec, 2, seed, opened={"mine": many})
    try:
        for _ in range(3):
            batch = next(data)
            assert batch["text"].tokens.shape == (2, budget)
    except UsageError as error:  # only where not one record can be used
        assert "none of the last" in str(error)
    errors = data.stats()["errors"]
    assert set(errors) <= {f"set/{i}.png" for i in range(96)} and all("\n" not in why for why in errors.values())


# --- nothing good -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"prefetch": 2, "read_threads": 2}])
def test_where_nothing_is_usable_the_run_ends_though_all_may_be_bad(change):
    class Broken(Images):
        def __getitem__(self, i):
            return {"id": f"set/{i}.png", "error": "no such file"}

    wanted = pytest.raises(UsageError, match=r"none of the last 800 records can be used.*set/.*no such file")
    with pipeline(Broken(), max_bad_share=1.0, **change) as data, wanted:
        next(data)
    with pipeline(Images({}, 1000), max_bad_share=1.0, **change) as data:
        assert len(next(data)["text"].tokens) == 2


def test_one_good_record_among_many_bad_ones_is_found_if_all_may_be_bad():
    class Nearly(Images):
        def __getitem__(self, i):
            return super().__getitem__(i) if i == 3 else {"id": f"set/{i}.png", "error": "no such file"}

    assert set(captions_of(read(Nearly(count=120), batches=2, max_bad_share=1.0)[0])) == {"thing 3"}
