"""Images that keep nearly their own aspect: which sizes there are, which one an image gets, and how they grow."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transfusion.api.fitting import Fitter
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.kl_autoencoder import Autoencoder
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import from_json, to_json
from transfusion.data import images
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.forms import sized
from transfusion.data.latent_files import CachePlan, check_source, content_of, read_about, write_about
from transfusion.data.pipeline import Pipeline, merge_states
from transfusion.data.sizes import SizesConfig, nearest_size
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.latents import PIXELS, Codec, Codecs, autoencoder_codec, check_resolutions, forms_of
from transfusion.sequence import Run, SequenceSpec, Stream, text

STREAMS = {
    "text": Stream(budget=120, vocabulary=text.VOCABULARY),
    "image": tiny.image_stream(grid=(0, 0), budget=60, items=12),
}
SPEC = SequenceSpec(
    STREAMS,
    {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)},
    text.BOS,
    text.EOS,
    3,
)
FILES = {(8 * h, 8 * w) for h in range(1, 8) for w in range(1, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Pictures of 49 sizes, darker above than below."""
    path = tmp_path_factory.mktemp("sizes")
    rows = []
    for height, width in sorted(FILES):
        name = f"{height}x{width}.png"
        shade = np.linspace(0, 255, height).astype(np.uint8)[:, None].repeat(width, 1)
        Image.fromarray(shade).save(path / name)
        rows.append(json.dumps({"file_name": name, "caption": f"{height} by {width}"}))
    (path / "captions.jsonl").write_text("\n".join(rows))
    return str(path)


def source(folder: str, **sizes) -> SourceConfig:
    return SourceConfig(kind="folder", path=folder, channels=1, sizes=SizesConfig(multiple=2, **sizes))


@given(st.integers(1, 400), st.integers(1, 9), st.floats(1, 8))
def test_sizes_fill_the_budget_and_are_near_every_aspect_within_the_limit(tokens, multiple, aspect):
    sizes = SizesConfig(tokens, multiple, aspect).last
    counts = [(height // multiple, width // multiple) for height, width in sizes]
    assert sizes == tuple((h * multiple, w * multiple) for h, w in counts) and len(set(sizes)) == len(sizes)
    everything = [(h, w) for h in range(1, tokens + 1) for w in range(1, tokens // h + 1)]
    assert counts == [(h, w) for h, w in everything if (h + 1) * (w + 1) > tokens and max(h, w) <= aspect * min(h, w)]
    side = int(tokens**0.5)
    assert (side * multiple,) * 2 in sizes  # a square is always among them


def test_an_image_gets_the_nearest_aspect_and_then_the_nearest_area():
    sizes = SizesConfig(24, 2, 1.5).last
    assert sizes == ((8, 8), (8, 10), (8, 12), (10, 8), (12, 8))
    assert nearest_size((100, 100), sizes) == (8, 8)
    assert nearest_size((1080, 1920), sizes) == (8, 12)  # nothing is wider
    assert nearest_size((1000, 820), sizes) == (10, 8)
    listed = SizesConfig(multiple=2, listed=((8, 8), (16, 16), (8, 16))).last
    assert nearest_size((9, 9), listed) == (8, 8) and nearest_size((100, 100), listed) == (16, 16)
    assert SizesConfig(20, 2, listed=((8, 8), (16, 16))).last == ((8, 8),)
    assert SizesConfig().last == () and not SizesConfig()


def test_only_what_hangs_over_at_two_sides_is_lost():
    picture = np.zeros((30, 42, 1), np.uint8)
    picture[:, 1:41] = 200  # 30x40 is 3:4; one column hangs over at the left, and one at the right
    fitted = images.fit(picture, [(6, 8), (8, 8)])
    assert fitted.shape == (6, 8, 1) and (fitted == 200).all()
    untouched = np.zeros((6, 8, 1), np.uint8)
    assert images.fit(untouched, [(6, 8), (8, 8)]) is untouched


def test_records_have_few_sizes_and_rows_their_real_tokens(folder):
    config = DataConfig(sources={"mine": source(folder, tokens=24)}, prefetch=0)
    records = open_source(config.sources["mine"])
    sizes = {record["image"].shape[:2] for record in records}
    assert sizes == set(config.sources["mine"].fitted)
    with Pipeline(config, SPEC, 2) as pipeline:
        batches = [next(pipeline)["image"] for _ in range(10)]
        assert pipeline.stats()["efficiency"]["image"] > 0.75  # of at most 60 tokens, in items of 16 to 24
    found = {size for batch in batches for size in sizes_of(batch)}
    assert found == {(height // 2, width // 2) for height, width in sizes}
    assert len({jax.tree.structure(batch) for batch in batches}) == 1  # and all have the same shapes


def sizes_of(batch):
    """Rows and columns of the items of packed rows."""
    for place, item, document in zip(batch.place, batch.item, batch.document, strict=True):
        for number in np.unique(item[document > 0]):
            yield tuple(int(side) for side in place[(item == number) & (document > 0)].max(0) + 1)


def test_the_media_of_prompts_get_the_sizes_of_training(folder):
    one = source(folder, tokens=24)
    forms = sized(forms_of(SPEC, Codecs(PIXELS)), {"mine": one, "words": SourceConfig(kind="text", path="x")})
    fitter = Fitter(forms)
    record = next(r for r in open_source(one) if r["caption"] == "16 by 56")
    picture = np.asarray(Image.open(f"{folder}/16x56.png"))
    np.testing.assert_array_equal(fitter.fit(picture), record["image"])
    assert fitter.notes == ["a picture of 56x16 is cropped and resized to 12x6"]
    assert sized(forms_of(SPEC, Codecs(PIXELS)), {"mine": SourceConfig()})["image"].sizes == ()


# --- growth -----------------------------------------------------------------------------------------------------------

GROWTH = {"tokens": 6, "growth": ((60, 12), (130, 24))}


def growing(folder: str, **changes) -> DataConfig:
    """A source that grows beside one that does not, which starts at its larger size."""
    sources = {"grows": source(folder, aspect=1.5, **GROWTH), "stays": source(folder, tokens=30)}
    sources["stays"] = dataclasses.replace(sources["stays"], caption_field="", weight=0.5)
    return DataConfig(sources=sources, drop_caption=0.0, **{"prefetch": 0} | changes)


def test_images_grow_at_the_record_that_the_config_names(folder, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    config = growing(folder)
    pipeline = Pipeline(config, SPEC, 2)
    areas = []
    for index in range(200):
        record = pipeline._records[index]
        if "caption" in record:
            areas.append((index, record["image"].shape[:2]))
    said = [line for line in caplog.messages if line.startswith("images are larger")]
    assert said == [f"images are larger from record {start} of the mixture on" for start in (60, 130)]
    stages = dict(config.sources["grows"].sizes.stages)
    assert list(stages) == [0, 60, 130]
    for index, size in areas:
        start = max(start for start in stages if start <= index)
        assert size in stages[start].last, index
    assert {size[0] * size[1] <= 24 for index, size in areas if index < 60} == {True}
    assert max(size[0] * size[1] for _, size in areas) == 96
    plain = dataclasses.replace(config, sources={n: dataclasses.replace(s, sizes=SizesConfig()) for n, s in
                                                 config.sources.items()})  # fmt: skip
    order = [record["id"] for record in (Pipeline(plain, SPEC, 2)._records[i] for i in range(200))]
    assert order == [pipeline._records[i]["id"] for i in range(200)]  # growth changes no order


@pytest.mark.parametrize("stop", [0, 2, 7])
def test_resume_is_exact_before_between_and_after_growth(folder, stop):
    with Pipeline(growing(folder, prefetch=2, read_threads=2), SPEC, 4, seed=3) as pipeline:
        for _ in range(stop):
            next(pipeline)
        state = json.loads(json.dumps(pipeline.state()))
        expected = [next(pipeline) for _ in range(8)]
    parts = []
    for rows in ((0, 1), (2, 3)):  # two hosts go on
        with Pipeline(growing(folder, cache=False), SPEC, 4, seed=3, rows=rows) as half:
            half.restore(state)
            parts.append([next(half) for _ in range(8)])
            last = half.state()
        state_of = merge_states([state, last])
    assert state_of["batch_size"] == 4
    for batch, halves in zip(expected, zip(*parts, strict=True), strict=True):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *halves)
        jax.tree.map(np.testing.assert_array_equal, batch, joined)


def test_batches_grow_under_one_set_of_shapes(folder):
    with Pipeline(growing(folder), SPEC, 4) as pipeline:
        batches = [next(pipeline)["image"] for _ in range(30)]
    largest = [max(h * w for h, w in sizes_of(batch)) for batch in batches]
    assert largest[-1] >= 24 and len({batch.values.shape for batch in batches}) == 1
    small = [min(h * w for h, w in sizes_of(batch)) for batch in batches]
    assert min(small[:8]) <= 6 < 16 <= min(small[-8:])


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resolution": 8}, "both sizes and resolution=8"),
        ({"latents": "x", "sizes": SizesConfig(4, 2, growth=((9, 16),))}, "cached latents do not grow"),
        ({"sizes": SizesConfig(8, 2, growth=((0, 16),))}, "0 records and 16 tokens must be more than 0 and 8"),
        ({"sizes": SizesConfig(8, 2, growth=((9, 8),))}, "must be more than 0 and 8"),
        ({"sizes": SizesConfig(0, 2, growth=((9, 8),))}, "growth: set tokens"),
        ({"sizes": SizesConfig(0, 4, listed=((8, 6),))}, "8x6 is no multiple of 4 pixels"),
        ({"sizes": SizesConfig(3, 2, listed=((8, 8),))}, "no size has at most 3 tokens"),
        ({"sizes": SizesConfig(24, 0)}, "must be at least 1"),
        ({"sizes": SizesConfig(2**20, 16)}, "are over pixel_limit=50000000"),
        ({"kind": "text", "channels": 0}, r"sizes=.* is read by sources of kind"),
    ],
)
def test_wrong_sizes_are_one_line(fields, message):
    with pytest.raises(UsageError, match=message) as error:
        SourceConfig(**{"kind": "folder", "path": "x", "sizes": SizesConfig(24, 2)} | fields).validate("s", 50_000_000)
    assert "\n" not in str(error.value)


def test_sizes_that_the_streams_do_not_hold_are_refused_before_any_record_is_read():
    def check(codec=PIXELS, **sizes):
        check_resolutions({"mine": SourceConfig(sizes=SizesConfig(**sizes))}, SPEC, Codecs(codec))

    check(tokens=60, multiple=2)
    check(tokens=15, multiple=4)
    with pytest.raises(UsageError, match=r"sources\.mine\.sizes: 3x3 does not fit .* multiples of 2 pixels"):
        check(tokens=1, multiple=3)
    with pytest.raises(UsageError, match="at most 240 in all"):
        check(tokens=10, multiple=2, growth=((5, 64),))
    with pytest.raises(UsageError, match="multiples of 8 pixels"):
        check(Codec(np.asarray, np.asarray, down=4), tokens=10, multiple=4)


def test_a_config_and_a_latent_cache_keep_the_sizes(tmp_path):
    one = source("x", listed=((4, 4), (4, 6)))
    experiment = tiny.experiment("x", data=DataConfig(sources={"mine": dataclasses.replace(one, kind="folder")}))
    assert from_json(to_json(experiment)).data.sources["mine"].sizes == one.sizes
    write_about(tmp_path, CachePlan("codec", content_of(one), 3, 3), None)
    plan = read_about(tmp_path)[0]
    check_source(tmp_path, plan, content_of(one))
    with pytest.raises(UsageError, match="a source with sizes="):
        check_source(tmp_path, plan, content_of(dataclasses.replace(one, sizes=SizesConfig(24, 2))))


def test_a_codec_is_compiled_once_for_each_size(folder, monkeypatch):
    config = AutoencoderConfig(image_channels=1, channels=(8,), latent_channels=2, norm_groups=4)
    params = autoencoder_template(config).init(jax.random.key(0))
    codec = autoencoder_codec(config, params)
    one = source(folder, listed=((8, 8), (8, 12)))
    records = open_source(dataclasses.replace(one, channels=config.image_channels))
    traced, encode = [], Autoencoder.encode
    monkeypatch.setattr(
        Autoencoder, "encode", lambda self, x, *rest: (traced.append(x.shape), encode(self, x, *rest))[1]
    )
    sizes = [codec.encode(record["image"]).shape for record in records]
    assert len(traced) == len(set(sizes)) == len(one.fitted) < len(sizes)
