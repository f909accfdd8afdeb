"""What cannot work is found before the first step, in one line: held-out data, budgets, and numbers out of range."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import tiny
from PIL import Image

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import EvalConfig, Experiment
from transfusion.data.config import FIELDS_OF_KINDS, DataConfig, SourceConfig
from transfusion.data.sizes import SizesConfig
from transfusion.errors import UsageError
from transfusion.tasks import make_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("start") / "images", 24)


def broken(path, count=12):
    """A folder whose captions name files that are not there."""
    path.mkdir()
    rows = [json.dumps({"file_name": f"{i}.png", "caption": "a thing"}) for i in range(count)]
    (path / "captions.jsonl").write_text("\n".join(rows))
    return str(path)


def sequence(folder, held_out=None, **evaluation):
    sources = {"seen": held_out} if held_out else {}
    return tiny.experiment(folder, eval=EvalConfig(**{"every": 5, "sources": sources} | evaluation))


def codec(folder, held_out=None, **evaluation):
    data = {name: dataclasses.replace(source, resolution=8, channels=1) for name, source in (
        ("mine", SourceConfig(kind="folder", path=folder)), *((("seen", held_out),) if held_out else ()))}  # fmt: skip
    return Experiment(
        task="autoencoder", batch_size=4,
        autoencoder=AutoencoderConfig(image_channels=1, channels=(8, 8), norm_groups=4),
        data=DataConfig(sources={"mine": data["mine"]}),
        eval=EvalConfig(**{"every": 5, "sources": {n: s for n, s in data.items() if n == "seen"}} | evaluation),
    )  # fmt: skip


def start(experiment):
    with make_task(experiment).open_data(experiment) as data:
        return next(data)


def refused(experiment):
    with pytest.raises(UsageError) as caught:
        start(experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("of", [sequence, codec])
def test_held_out_data_is_tried_before_the_first_step(of, folder, tmp_path, caplog):
    good = SourceConfig(kind="folder", path=folder)
    start(of(folder, good))
    absent = SourceConfig(kind="folder", path=str(tmp_path / "absent"))
    assert "eval.sources.seen: no folder" in refused(of(folder, absent))
    empty = SourceConfig(kind="folder", path=broken(tmp_path / "broken"))
    line = refused(of(folder, empty))
    assert "eval.sources.seen: none of its 12 records can be used. The first: " in line and "/0.png: " in line
    assert "eval.batches=0 must be at least 1" in refused(of(folder, good, batches=0))
    with caplog.at_level(logging.WARNING, logger="absl"):  # training evaluates nothing: it may go on
        start(of(folder, absent, every=0))
    assert any("eval.sources.seen: no folder" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("of", [sequence, codec])
@pytest.mark.parametrize("share", [0.01, 1.0])
def test_training_data_with_nothing_good_is_refused(of, share, tmp_path):
    experiment = of(broken(tmp_path / "broken"))
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, max_bad_share=share))
    assert "data.sources.mine: none of its 12 records can be used. The first: " in refused(experiment)


def test_captions_that_all_exceed_the_budget_are_named_with_the_field(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    rows = []
    for i in range(6):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "caption": "x" * 90}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    experiment = sequence(str(folder))
    line = refused(experiment)
    assert f"{folder}/0.png: takes 94 tokens of stream 'text', a row holds 64: raise streams.text.budget to 94" in line
    data = dataclasses.replace(experiment.data, truncate=True, prefetch=0)
    assert start(dataclasses.replace(experiment, data=data))["text"].tokens.shape == (4, 64)


def test_an_image_of_other_channels_is_a_codecs_bad_record(tmp_path):
    folder = tmp_path / "mixed"
    tiny.write_folder(folder, 8)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "3.png")
    experiment = codec(str(folder), SourceConfig(kind="folder", path=str(folder)))
    loose = dataclasses.replace(experiment.data.sources["mine"], channels=0)
    data = dataclasses.replace(experiment.data, sources={"mine": loose}, max_bad_share=0.5)
    experiment = dataclasses.replace(
        experiment, data=data, eval=dataclasses.replace(experiment.eval, sources={"seen": loose})
    )
    task = make_task(experiment)
    with task.open_data(experiment) as batches:
        for _ in range(6):
            assert next(batches)["images"].shape == (4, 8, 8, 1)
        (why,) = batches.stats()["errors"].values()
    assert why == "the image is [8, 8, 3], not [8, 8, 1]"
    assert sum(batch["weight"].sum() for batch in task.held_out(experiment)) == 7


def test_a_share_that_is_held_out_here_and_trained_on_there_is_refused(folder):
    mine = SourceConfig(kind="folder", path=folder, hold_out=0.3)
    held_out = dataclasses.replace(mine, part="held_out")
    experiment = sequence(folder, held_out)
    line = refused(experiment)
    assert "eval.sources.seen holds out records that data.sources.mine trains on" in line
    data = dataclasses.replace(experiment.data, sources={"mine": mine})
    start(dataclasses.replace(experiment, data=data))


RANGES = [
    ({"prefetch": -1}, "data.prefetch=-1 must be at least 0"),
    ({"prefetch": 10**9}, "data.prefetch"),
    ({"read_threads": -1}, "data.read_threads=-1 must be at least 0"),
    ({"read_threads": 10**6}, "data.read_threads=1000000 must be at most 1000"),
    ({"cache_megabytes": -1}, "data.cache_megabytes=-1"),
    ({"read_ahead": 0}, "data.read_ahead=0"),
    ({"open_rows": 0}, "data.open_rows=0"),
    ({"pixel_limit": -5}, "data.pixel_limit=-5"),
    ({"max_bad_share": float("nan")}, "data.max_bad_share=nan"),
    ({"caption_first": float("inf")}, "data.caption_first=inf"),
    ({"drop_conditions": {"text": 2.0}}, "data.drop_conditions.text=2.0"),
    ({"shift": -1}, "data.shift=-1"),
]
SOURCES = [
    ({"record_bytes": 0}, "data.sources.mine.record_bytes=0 must be at least 4"),
    ({"record_bytes": 10**12}, "data.sources.mine.record_bytes"),
    ({"weight": float("inf")}, "data.sources.mine.weight=inf"),
    ({"weight": float("nan")}, "data.sources.mine.weight=nan"),
    ({"resolution": -8}, "data.sources.mine.resolution=-8"),
    ({"resolution": 10**9}, "data.sources.mine.resolution=1000000000 must be at most 7071"),
    ({"resolution": 4000, "length": 99}, "99 frames of 4000x4000 are more than data.pixel_limit"),
    ({"length": -1}, "data.sources.mine.length=-1"),
    ({"rate": 10**9}, "data.sources.mine.rate"),
    ({"channels": 2}, "data.sources.mine.channels=2"),
]


@pytest.mark.parametrize("fields, line", RANGES, ids=lambda value: str(value)[:40])
def test_numbers_of_the_data_out_of_range_are_one_line(folder, fields, line):
    experiment = tiny.experiment(folder)
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **fields))
    assert refused(experiment).startswith(line)


@pytest.mark.parametrize("fields, line", SOURCES, ids=lambda value: str(value)[:40])
def test_numbers_of_a_source_out_of_range_are_one_line(folder, fields, line):
    source = SourceConfig(**{"kind": "folder", "path": folder} | fields)
    with pytest.raises(UsageError, match=line.replace("(", r"\(")):
        DataConfig(sources={"mine": source}).validate()
    experiment = sequence(folder, source)  # the same of held-out data
    assert line.removeprefix("data.sources.mine") in refused(experiment)


@pytest.mark.parametrize(
    "fields, line",
    [
        (
            {"kind": "folder", "split": "test"},
            "mine.split='test' is read by sources of kind 'tfds' and 'scenes' only, and this one is of",
        ),
        (
            {"kind": "text", "resolution": 8},
            "mine.resolution=8 is read by sources of kind 'tfds' and 'folder' and 'webd",
        ),
        ({"kind": "webdataset", "image_field": "jpg"}, "mine.image_field='jpg' is read by sources of kind 'tfds' only"),
        ({"name": "digits", "record_bytes": 99}, "mine.record_bytes=99 is read by sources of kind 'text' only"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_that_is_of_another_kind_of_source_is_refused(fields, line):
    with pytest.raises(UsageError, match=line):
        DataConfig(sources={"mine": SourceConfig(**fields)}).validate()


def test_sources_take_the_fields_of_their_kind_and_kinds_of_users_take_all():
    for kind, names in FIELDS_OF_KINDS.items():
        known = {"captions": "a.csv", "medium": "sound", "follow_links": True, "channels": 3, "record_bytes": 99}
        number = {"resolution": 8, "length": 9, "rate": 8000}
        values = {name: (known | number).get(name, "x") for name in names - {"sizes"}}
        SourceConfig(kind=kind, path="x", weight=2.0, hold_out=0.5, part="held_out", latents="y", **values).validate(
            "a", 10**9
        )
        if "sizes" in names:  # in place of a resolution
            SourceConfig(kind=kind, path="x", sizes=SizesConfig(tokens=4, multiple=2)).validate("a", 10**9)
    SourceConfig(kind="trajectories", split="test", record_bytes=99).validate("a", 10**9)


def test_a_seed_below_zero_is_one_line(folder):
    experiment = tiny.experiment(folder)
    try:
        experiment = dataclasses.replace(experiment, seed=-1)
    except UsageError as error:  # found even earlier
        assert "seed" in str(error)
    else:
        assert "seed must be 0 or more, not -1" in refused(experiment)
