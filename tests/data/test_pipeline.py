"""The pipeline: exact resume, the same global batches on any number of hosts, full rows, bad records, its threads."""

import dataclasses
import json
import logging
import threading

import jax
import numpy as np
import pytest

from transfusion.data import documents
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.pipeline import Pipeline, epoch_batches, merge_states
from transfusion.errors import UsageError
from transfusion.sequence import Run, SequenceSpec, Stream, text


def make_spec(words, patches):
    image = (Run("image", opener=text.BOI, closer=text.EOI),)
    streams = {
        "text": Stream(budget=words, vocabulary=text.VOCABULARY),
        "image": Stream(
            embed="linear",
            head="linear",
            objective="continuous",
            attention="block",
            budget=patches,
            channels=1,
            patch=2,
            grid=(8, 8),
        ),  # fmt: skip
    }
    return SequenceSpec(streams, {"text": (Run("text"),), "image": image}, text.BOS, text.EOS)


SPEC = make_spec(96, 48)


class Images:
    """`count` captioned images whose pixels all equal their number; those in `broken` are error records."""

    def __init__(self, count, broken=(), side=8):
        self.count, self.broken, self.side = count, set(broken), side

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.broken:
            return {"id": f"image {i}", "error": "broken file"}
        return {"id": f"image {i}", "image": np.full((self.side, self.side, 1), i, np.uint8), "caption": f"number {i}"}


class Texts:
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {"id": f"text {i}", "text": f"<{i}>" + "word " * (3 + 5 * i % 37)}


OPENED = {"images": Images(60), "texts": Texts()}
CONFIG = DataConfig(sources={"images": SourceConfig(weight=0.7), "texts": SourceConfig(weight=0.3)}, prefetch=0)


def take(pipeline, count):
    return [next(pipeline) for _ in range(count)]


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resume_is_exact_whatever_was_made_ahead(prefetch, stop):
    config = dataclasses.replace(CONFIG, prefetch=prefetch)
    with Pipeline(config, SPEC, 4, seed=5, opened=OPENED) as pipeline:
        take(pipeline, stop)
        state = json.loads(json.dumps(pipeline.state()))
        expected = take(pipeline, 6)
    with Pipeline(config, SPEC, 4, seed=5, opened=OPENED) as pipeline:
        take(pipeline, 2)
        pipeline.restore(state)
        assert pipeline.state() == state
        assert_same(take(pipeline, 6), expected)


def test_two_hosts_make_the_batches_of_one_and_states_go_over():
    whole = Pipeline(CONFIG, SPEC, 4, opened=OPENED)
    halves = [Pipeline(CONFIG, SPEC, 4, rows=rows, opened=OPENED) for rows in ((0, 1), (2, 3))]

    def joined():
        parts = [next(half) for half in halves]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    for _ in range(4):
        assert_same(joined(), next(whole))
    state = json.loads(json.dumps(merge_states(half.state() for half in halves)))
    assert state == whole.state()
    later = Pipeline(CONFIG, SPEC, 4, opened=OPENED)
    later.restore(state)
    assert_same(take(later, 2), take(whole, 2))
    with pytest.raises(UsageError, match="lacks rows"):
        later.restore(halves[0].state())
    with pytest.raises(UsageError, match="seed"):
        Pipeline(CONFIG, SPEC, 4, seed=1, opened=OPENED).restore(state)


def test_threads_and_caches_change_nothing():
    plain = Pipeline(dataclasses.replace(CONFIG, cache=False), SPEC, 4, opened=OPENED)
    expected = take(plain, 12)
    for change in ({"cache": True}, {"read_threads": 3}, {"cache": True, "cache_megabytes": 0, "prefetch": 2}):
        with Pipeline(dataclasses.replace(CONFIG, **change), SPEC, 4, opened=OPENED) as pipeline:
            assert_same(take(pipeline, 12), expected)


def rows_as_text(batches):
    for batch in batches:
        tokens, document = batch["text"].tokens, batch["text"].document
        for row in range(len(tokens)):
            for number in range(1, document[row].max() + 1):
                yield text.decode(tokens[row][document[row] == number]), batch, row, number


def test_every_lane_meets_every_source_also_where_the_mixture_repeats_with_the_batch():
    # A pattern of period 10 and 10 lanes: without the turn of `_example` a lane would read one source only.
    pipeline = Pipeline(CONFIG, SPEC, 10, opened=OPENED)
    images, words = np.zeros(10), np.zeros(10)
    for batch in take(pipeline, 30):
        images += (batch["image"].document > 0).sum(1)
        words += (batch["text"].document > 0).sum(1)
    assert images.min() > 0.2 * images.max() and words.min() > 0.7 * words.max()


def test_shares_of_order_and_dropped_captions():
    config = dataclasses.replace(CONFIG, sources={"images": SourceConfig()}, caption_first=0.7, drop_caption=0.2)
    pipeline = Pipeline(config, SPEC, 8, opened=OPENED)
    counts = {"dropped": 0, "first": 0, "last": 0}
    for caption, batch, row, number in rows_as_text(take(pipeline, 50)):
        opener = batch["text"].tokens[row] == text.BOI
        of_document = batch["text"].document[row] == number
        letters = of_document & (batch["text"].tokens[row] < 256)
        if not caption:
            counts["dropped"] += 1
        elif batch["text"].order[row][letters].min() < batch["text"].order[row][opener & of_document].min():
            counts["first"] += 1
        else:
            counts["last"] += 1
    total = sum(counts.values())
    assert total > 1000
    assert counts["last"] / total == pytest.approx(0.3, abs=0.04)
    assert counts["dropped"] / total == pytest.approx(0.7 * 0.2, abs=0.04)


def test_documents_keep_image_and_caption_together():
    config = dataclasses.replace(CONFIG, sources={"images": SourceConfig()}, drop_caption=0.0)
    seen = 0
    for caption, batch, row, number in rows_as_text(take(Pipeline(config, SPEC, 2, opened=OPENED), 10)):
        values = batch["image"].values[row][batch["image"].document[row] == number]
        assert values.shape == (16, 4)
        assert np.allclose((values + 1) * 127.5, float(caption.split()[1]))
        seen += 1
    assert seen > 40


def test_roles_and_mirror():
    record = {"image": np.arange(4, dtype=np.uint8).reshape(2, 2, 1), "caption": "x"}
    segments = documents.to_document(record, documents.DocumentChoice(caption_first=False, mirror=True))
    assert [(s.kind, s.role) for s in segments] == [("image", "context"), ("text", "target")]
    assert segments[0].value[..., 0].tolist() == documents.pixel_latents(record["image"][:, ::-1])[..., 0].tolist()
    segments = documents.to_document(record, documents.DocumentChoice())
    assert [(s.kind, s.role) for s in segments] == [("text", "both"), ("image", "target")]
    assert [s.role for s in documents.to_document(record, documents.DocumentChoice(caption=False))] == ["target"]


def test_images_move_by_all_distances_and_their_edges_go_on():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    record, config = {"image": image, "caption": "x"}, dataclasses.replace(CONFIG, shift=1)
    shifts = {documents.choose_document(record, config, (0, i)).shift for i in range(100)}
    assert shifts == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert documents.choose_document(record, CONFIG, (0, 0)).shift == (0, 0)
    (_, moved) = documents.to_document(record, documents.DocumentChoice(shift=(1, -1)))
    wanted = np.array([[1, 2, 2], [1, 2, 2]], np.uint8)[..., None]  # down, to the left
    np.testing.assert_array_equal(moved.value, documents.pixel_latents(wanted))


def test_bad_records_are_skipped_counted_and_logged_once(caplog):
    config = dataclasses.replace(CONFIG, sources={"images": SourceConfig()}, max_bad_share=0.2)
    opened = {"images": Images(60, broken=[3, 40])}
    with caplog.at_level(logging.WARNING, logger="absl"):
        pipeline = Pipeline(config, SPEC, 4, opened=opened)
        batches = take(pipeline, 40)
    assert not any("number 3 " in f"{caption} " for caption, *_ in rows_as_text(batches))
    stats = pipeline.stats()
    assert stats["errors"] == {"image 3": "broken file", "image 40": "broken file"}
    assert stats["bad"] > 2
    assert sum("image 3:" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("prefetch", [0, 2])
def test_too_many_bad_records_stop_with_their_names(prefetch):
    for broken in (range(0, 60, 5), range(60)):  # more than allowed, and all
        config = dataclasses.replace(CONFIG, sources={"images": SourceConfig()}, prefetch=prefetch)
        pipeline = Pipeline(config, SPEC, 4, opened={"images": Images(60, broken=broken)})
        for _ in range(2):  # asked again, it says the same
            with pytest.raises(UsageError, match="max_bad_share=0.01.*image .*: broken file"):
                take(pipeline, 100)
        pipeline.close()


def test_an_image_of_another_size_is_a_bad_record():
    config = dataclasses.replace(CONFIG, sources={"images": SourceConfig()})
    with pytest.raises(UsageError, match="does not fit"):
        take(Pipeline(config, SPEC, 4, opened={"images": Images(60, side=6)}), 100)


def test_errors_of_the_thread_reach_the_caller_and_close_ends_it():
    def encode(kind, image):
        if image[0, 0, 0] == 33:
            raise RuntimeError("codec broke")
        return documents.pixel_latents(image)

    before = threading.active_count()
    config = dataclasses.replace(CONFIG, prefetch=2, read_threads=2)
    pipeline = Pipeline(config, SPEC, 4, opened=OPENED, encode=encode)
    with pytest.raises(RuntimeError, match="codec broke"):
        take(pipeline, 100)
    pipeline.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(pipeline)


def test_wrong_configs_are_one_clear_line():
    cases = [
        (dataclasses.replace(CONFIG, caption_first=1.5), "caption_first"),
        (dataclasses.replace(CONFIG, sources={}), "sources is empty"),
        (dataclasses.replace(CONFIG, sources={"images": SourceConfig(weight=0.0)}), "images.weight"),
        (dataclasses.replace(CONFIG, open_rows=0), "open_rows"),
    ]
    for config, message in cases:
        with pytest.raises(UsageError, match=message):
            Pipeline(config, SPEC, 4, opened=OPENED)


def test_an_epoch_has_every_record_once():
    config = dataclasses.replace(CONFIG, caption_first=1.0, drop_caption=0.0)
    batches = list(epoch_batches(Images(25), config, SPEC, 4))
    assert sorted(caption for caption, *_ in rows_as_text(batches)) == sorted(f"number {i}" for i in range(25))
    assert all(batch["text"].tokens.shape == (4, 96) for batch in batches)
    letters = "".join(caption for caption, *_ in rows_as_text(epoch_batches(Texts(), config, SPEC, 4)))
    assert len(letters) == sum(len(Texts()[i]["text"]) for i in range(40))


def test_digits_and_text_fill_95_percent_of_both_budgets(tmp_path):
    pytest.importorskip("sklearn")
    from transfusion.data import builders

    for name in ("digits", "text"):
        builders.prepare(name, str(tmp_path))
    sources = {"digits": SourceConfig(name="digits", weight=0.9), "text": SourceConfig(name="text", weight=0.1)}
    config = DataConfig(data_dir=str(tmp_path), sources=sources, prefetch=0)
    pipeline = Pipeline(config, make_spec(528, 128), 8)
    take(pipeline, 25)
    efficiency = pipeline.stats()["efficiency"]
    print(f"packing efficiency of digits + text: {efficiency}")
    assert efficiency["all"] >= 0.95
    assert min(efficiency.values()) >= 0.9
