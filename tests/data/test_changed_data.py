"""A resume on other data says what has changed, and goes on in a defined order: full batches, never a wrong message."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.image_batches import ImageBatches
from transfusion.data.pipeline import Pipeline, merge_states
from transfusion.data.position import changes
from transfusion.errors import UsageError
from transfusion.sequence import Run, SequenceSpec, text


def spec_of(words=48, patches=16):
    streams = {
        "text": tiny.text_stream(vocabulary=text.VOCABULARY, budget=words),
        "image": tiny.image_stream(grid=(8, 8), patch=4, budget=patches),
    }
    layout = {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)}
    return SequenceSpec(streams, layout, text.BOS, text.EOS)


class Images:
    def __init__(self, count=200, caption="thing", broken=()):
        self.count, self.caption, self.broken = count, caption, broken

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.broken:
            return {"id": f"{i}.png", "error": "gone"}
        return {"id": f"{i}.png", "image": np.full((8, 8, 1), i % 256, np.uint8), "caption": f"{self.caption} {i}"}


class Texts:
    def __init__(self, count=150, words=9):
        self.count, self.words = count, words

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"id": f"text {i}", "text": f"<{i}>" + " word" * (1 + i % self.words)}


CONFIG = DataConfig(
    sources={"images": SourceConfig(weight=0.7), "texts": SourceConfig(weight=0.3)}, prefetch=0, max_bad_share=0.9
)


def open_pipeline(images=None, texts=None, config=CONFIG, spec=None, **more):
    opened = {"images": images or Images(), "texts": texts or Texts()}
    return Pipeline(config, spec or spec_of(), 4, opened={n: opened[n] for n in config.sources}, **more)


def saved(steps=5):
    pipeline = open_pipeline()
    for _ in range(steps):
        next(pipeline)
    return json.loads(json.dumps(pipeline.state())), pipeline


def resume(state, caplog, **changes_):
    pipeline = open_pipeline(**changes_)
    with caplog.at_level(logging.WARNING, logger="absl"):
        caplog.clear()
        pipeline.restore(state)
    return pipeline, [record.getMessage() for record in caplog.records]


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_same_data_goes_on_exactly_and_says_nothing(caplog):
    state, pipeline = saved()
    again, said = resume(state, caplog)
    assert not said
    assert_same(next(again), next(pipeline))
    assert json.loads(json.dumps(again.state()))["data"] == state["data"]


def test_a_state_from_before_the_fingerprint_goes_on_exactly(caplog):
    state, pipeline = saved()
    del state["data"]
    again, said = resume(state, caplog)
    assert not said
    assert_same(next(again), next(pipeline))


WEIGHTS = {"images": SourceConfig(weight=0.5), "texts": SourceConfig(weight=0.5)}
CHANGES = {
    "more records": (dict(images=Images(230)), "data.sources.images has 230 records, before 200"),
    "fewer records": (dict(texts=Texts(40)), "data.sources.texts has 40 records, before 150"),
    "others": (dict(images=Images(caption="a " * 30)), "data.sources.images has 200 records as before, but other ones"),
    "weights": (
        dict(config=dataclasses.replace(CONFIG, sources=WEIGHTS)),
        "data.sources.images is 0.5 of the mixture, before 0.7",
    ),
    "a source less": (
        dict(config=dataclasses.replace(CONFIG, sources={"images": SourceConfig()})), "data.sources.texts is gone"
    ),
    "order": (
        dict(config=dataclasses.replace(CONFIG, sources=dict(reversed(CONFIG.sources.items())))), "another order: texts"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change, line", CHANGES.values(), ids=CHANGES)
def test_other_data_is_said_in_one_line_and_the_order_is_defined(change, line, caplog):
    state, _ = saved()
    pipeline, said = resume(state, caplog, **change)
    assert len(said) == 1 and line in said[0], said
    cursors = {row: lane["cursor"] for row, lane in state["lanes"].items()}
    assert {row: lane["cursor"] for row, lane in pipeline.state()["lanes"].items()} == cursors
    assert all(not lane["bins"] and not lane["waiting"] for lane in pipeline.state()["lanes"].values())
    other, _ = resume(state, caplog, **change)
    batches = [next(pipeline) for _ in range(4)]
    assert_same(batches, [next(other) for _ in range(4)])
    # From here on it is that data's own state.
    again, said = resume(json.loads(json.dumps(pipeline.state())), caplog, **change)
    assert not said
    assert_same(next(again), next(pipeline))


def test_several_processes_leave_the_same_fingerprint():
    halves = [open_pipeline(rows=rows) for rows in ((0, 1), (2, 3))]
    merged = merge_states(json.loads(json.dumps(half.state())) for half in halves)
    assert merged == json.loads(json.dumps(open_pipeline().state()))


def test_a_record_that_is_gone_costs_its_document_only(caplog):
    # The digest looks at eight records: what it does not see is found when open rows are read again.
    state, _ = saved()
    open_now = {piece[0] for lane in state["lanes"].values() for row in lane["bins"] for piece in row}
    assert open_now
    seen = {i * 199 // 7 for i in range(8)}
    pipeline, said = resume(state, caplog, images=Images(broken=set(range(200)) - seen))
    assert any("documents of unfinished rows have changed since" in line for line in said)
    assert len(next(pipeline)["text"].tokens) == 4


def test_captions_that_grew_do_not_overfill_open_rows(caplog):
    # The wrong message of old: 'row 0: more than 48 tokens of stream 'text''.
    class Grown(Images):
        def __getitem__(self, i):
            record = super().__getitem__(i)
            return record if i in {i * 199 // 7 for i in range(8)} else record | {"caption": "x" * 40}

    state, _ = saved()
    pipeline, said = resume(state, caplog, images=Grown())
    assert len(said) <= 1
    for _ in range(4):
        next(pipeline)


def test_fewer_open_rows_do_not_pile_up(caplog):
    state, _ = saved()
    config = dataclasses.replace(CONFIG, open_rows=2, sources={"images": SourceConfig(weight=1)})
    del state["data"]
    pipeline, _ = resume(state, caplog, config=config)
    for _ in range(12):
        next(pipeline)
    assert all(len(lane["bins"]) <= 2 for lane in pipeline.state()["lanes"].values())


def test_a_position_of_something_else_is_refused_in_one_line():
    state, pipeline = saved()
    for wrong in ({**state, "seed": 7}, {**state, "batch_size": 9}, {"batch_size": 4, "seed": 0, "rows": {"0": 1}}):
        with pytest.raises(UsageError) as caught:
            pipeline.restore(wrong)
        assert "\n" not in str(caught.value)


def test_changes_name_what_differs_only():
    now = [["a", 0.5, "10, abc"], ["b", 0.5, "20, def"]]
    assert changes(now, now) == []
    assert changes(now, [*now, ["c", 0.1, "5, x"]]) == ["data.sources.c is new"]


PLACE = st.fixed_dictionaries(
    {
        "images": st.integers(30, 300),
        "texts": st.integers(30, 300),
        "caption": st.sampled_from(["thing", "a much longer thing than before", "x" * 70]),
        "broken": st.sets(st.integers(0, 60), max_size=30),
        "words": st.integers(20, 60),
        "patches": st.sampled_from([4, 16, 32]),
        "open_rows": st.integers(1, 9),
        "split_text": st.booleans(),
        "truncate": st.booleans(),
        "weight": st.floats(0.05, 0.95),
        "drop_caption": st.floats(0, 1),
        "fingerprint": st.booleans(),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(PLACE, st.integers(0, 6))
def test_any_change_of_the_data_gives_full_batches_or_one_line(place, steps):
    state, _ = saved(steps)
    if not place["fingerprint"]:
        del state["data"]
    sources = {"images": SourceConfig(weight=place["weight"]), "texts": SourceConfig(weight=1 - place["weight"])}
    fields = {name: place[name] for name in ("open_rows", "split_text", "truncate", "drop_caption")}
    try:
        pipeline = open_pipeline(
            Images(place["images"], place["caption"], place["broken"]), Texts(place["texts"]),
            dataclasses.replace(CONFIG, sources=sources, **fields), spec_of(place["words"], place["patches"]),
        )  # fmt: skip
        pipeline.restore(state)
        for _ in range(3):
            batch = next(pipeline)
            assert batch["text"].tokens.shape == (4, place["words"])
            assert ((batch["text"].document > 0).any(1) | (batch["image"].document > 0).any(1)).all()
    except UsageError as error:
        assert "cannot be used" in str(error) or "can be used" in str(error)


# --- images alone, for codecs -----------------------------------------------------------------------------------------


def images_of(folder):
    return DataConfig(sources={"mine": SourceConfig(kind="folder", path=folder, resolution=8, channels=1)})


def test_image_batches_say_it_too_and_refuse_what_is_not_theirs(tmp_path, caplog):
    few, many = tiny.write_folder(tmp_path / "few", 24), tiny.write_folder(tmp_path / "many", 30)
    batches = ImageBatches(images_of(few), 4)
    next(batches)
    state = json.loads(json.dumps(batches.state()))
    with caplog.at_level(logging.WARNING, logger="absl"):
        again = ImageBatches(images_of(few), 4)
        again.restore(state)
        assert not caplog.records
        assert_same(next(again), next(batches))
        again = ImageBatches(images_of(many), 4)
        again.restore(state)
    assert "data.sources.mine has 30 records, before 24" in caplog.records[0].getMessage()
    assert next(again)["images"].shape == (4, 8, 8, 1)
    old = {name: value for name, value in state.items() if name not in ("data", "seed")}
    ImageBatches(images_of(few), 4).restore(old)
    for wrong in ({**state, "seed": 1}, {**state, "batch_size": 5}, {**state, "rows": {"0": 4}}):
        with pytest.raises(UsageError):
            ImageBatches(images_of(few), 4).restore(wrong)
