"""TFDS on disk: parts and sums of splits, versions, nested captions, and folders that strangers made."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transfusion import storage
from transfusion.data import builders, documents
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.images import encode_png
from transfusion.data.packaged.base import PackagedBuilder
from transfusion.data.sources import open_source
from transfusion.data.tfds_source import TfdsSource
from transfusion.errors import PassingError, UsageError

MOST = 10**6


def digits(data_dir, **fields):
    return TfdsSource(SourceConfig(**{"name": "digits"} | fields), str(data_dir), MOST)


@pytest.fixture
def copied(data_dir, tmp_path):
    """A copy of the digits that a test may damage."""
    shutil.copytree(pathlib.Path(data_dir, "digits"), tmp_path / "digits")
    return tmp_path


@pytest.mark.parametrize(
    "split, count",
    [("train", 1500), ("train[:90%]", 1350), ("train[90%:]", 150), ("train[10:20]", 10), ("train+test", 1797),
     ("test+train[:10]", 307), ("all", 1797), ("train[-5:]", 5)],
)  # fmt: skip
def test_a_split_is_what_tfds_understands(data_dir, split, count):
    source = digits(data_dir, split=split)
    assert len(source) == count
    assert source[count - 1]["image"].shape == (8, 8, 1)


def test_the_parts_of_a_split_do_not_overlap(data_dir):
    whole, first, rest = (digits(data_dir, split=split) for split in ("test", "test[:30%]", "test[30%:]"))
    records = [*first, *rest]  # ends by itself
    assert len(records) == len(whole)
    for i in (0, 88, 89, 296):
        np.testing.assert_array_equal(records[i]["image"], whole[i]["image"])


@pytest.mark.parametrize(
    "split, line",
    [
        ("trian", "no split 'trian' (did you mean 'train'?): train, test"),
        ("train[:90%]+tset", "no split 'tset' (did you mean 'test'?)"),
        ("", "no split ''"),
        ("train[:200%]", "splits are given as in 'train', 'train[:90%]'"),
        ("train[:9999]", "incompatible with 1500 examples"),
        ("train[x]", "no split 'train[x]'"),
        ("train[", "no split 'train['"),
        ("train[:0]", "holds no records"),
        ("train[5:2]", "holds no records"),
    ],
)
def test_a_split_that_there_is_not_is_one_line(data_dir, split, line):
    with pytest.raises(UsageError) as caught:
        digits(data_dir, split=split)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_version_is_found_and_a_wrong_one_lists_those_on_disk(copied):
    about = (copied / "digits" / "1.1.0" / "dataset_info.json").read_text()
    shutil.copytree(copied / "digits" / "1.1.0", copied / "digits" / "1.0.9")
    (copied / "digits" / "1.0.9" / "dataset_info.json").write_text(about.replace('"1.1.0"', '"1.0.9"'))
    assert digits(copied, name="digits:1.1.0")[0]["id"].startswith("digits/1.1.0/train")
    assert digits(copied, name="digits:1.0.9")[0]["id"].startswith("digits/1.0.9/train")
    assert digits(copied, name="digits:1.*.*")[0]["id"].startswith("digits/1.1.0/train")
    for version in ("2.0.0", "x", "", "../1.0.9"):
        with pytest.raises(UsageError, match=r"has no version '.*' in '.*': there are 1.0.9, 1.1.0"):
            digits(copied, name=f"digits:{version}")
    shutil.rmtree(copied / "digits" / "1.1.0")
    with pytest.raises(UsageError, match="not prepared.*such as 'digits:1.0.9'"):
        digits(copied)


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """Images whose captions are sequences, tables of sequences or nested; a label that is none; two images."""
    folder = tmp_path_factory.mktemp("nested")
    of = tfds.features

    class Nested(PackagedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = of.Image(shape=(8, 8, 1), dtype=np.uint8)
            table = of.Sequence({"text": of.Text(), "id": np.int64})
            features = {"image": image, "pair": {"left": image}, "captions": table, "texts": of.Sequence(of.Text())}
            features |= {"inner": {"text": of.Text()}, "label": of.ClassLabel(names=["x", "y"])}
            return tfds.core.DatasetInfo(builder=self, features=of.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(8):
                captions = [{"text": f"{i}-{j}", "id": j} for j in range(i % 4)]
                image = encode_png(np.full((8, 8, 1), i, np.uint8))
                yield (
                    i,
                    {
                        "image": image, "pair": {"left": image}, "captions": captions, "texts": ["  ", f"only {i}"],
                        "inner": {"text": f"deep {i}"}, "label": -1 if i == 3 else i % 2,
                    },
                )  # fmt: skip

    builders.write_files(Nested(data_dir=str(folder), file_format="array_record"))

    def read(**fields):
        source = open_source(SourceConfig(name="nested", path=str(folder), **fields))
        return {int(r["image"][0, 0, 0]): r for r in (source[i] for i in range(8)) if "image" in r}, source

    return read


def test_captions_may_be_nested_or_several(nested):
    records, _ = nested(caption_field="captions/text")
    assert set(records) == {1, 2, 3, 5, 6, 7}  # 0 and 4 have none, and are bad records
    assert records[1]["caption"] == "1-0" and "captions" not in records[1]
    assert records[3]["captions"] == ("3-0", "3-1", "3-2") and records[3]["caption"] == "3-0"
    assert nested(caption_field="texts")[0][2]["caption"] == "only 2"
    assert nested(caption_field="inner/text", image_field="pair/left")[0][2]["caption"] == "deep 2"


def test_one_of_several_captions_is_taken_by_chance_and_always_the_same(nested):
    record, config = nested(caption_field="captions/text")[0][3], DataConfig(drop_caption=0.0)
    choices = [documents.choose_document(record, config, (5, index)) for index in range(90)]
    assert choices == [documents.choose_document(record, config, (5, index)) for index in range(90)]
    counts = np.bincount([choice.which for choice in choices])
    assert len(counts) == 3 and counts.min() > 15
    for choice in choices[:9]:
        (words,) = (segment for segment in documents.to_document(record, choice) if segment.kind == "text")
        assert bytes(words.value.astype(np.uint8)).decode() == f"3-{choice.which}"
    plain = {"id": "a", "image": record["image"], "caption": "x"}
    assert all(documents.choose_document(plain, config, (5, index)).which == 0 for index in range(20))


def test_a_field_that_is_a_table_or_no_text_is_named(nested):
    with pytest.raises(UsageError, match="name one of captions/id, captions/text"):
        nested(caption_field="captions")
    with pytest.raises(UsageError, match="no field 'captions/txt'"):
        nested(caption_field="captions/txt")
    records, source = nested(caption_field="captions/id")
    assert not records and "int64, not a text" in source[1]["error"] + source[2]["error"]


def test_a_label_that_is_none_is_no_caption_of_another_class(nested):
    records, _ = nested()
    assert 3 not in records and records[2]["caption"] == "x" and records[5]["caption"] == "y"


DAMAGE = ["", "{", "[]", "[" * 100_000, '{"a": 1}', "\udcff", "null", "3", '{"splits": 5}', '{"splits": [{"name": 1}]}']


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("data", DAMAGE, ids=lambda data: repr(data)[:12])
def test_damaged_files_are_one_line(copied, name, data):
    folder = copied / "digits" / "1.1.0"
    (folder / name).write_bytes(data.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        digits(copied, name="", path=str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_files_of_strangers_lead_nowhere(copied):
    folder = copied / "digits" / "1.1.0"
    about, features = ((folder / name).read_text() for name in ("dataset_info.json", "features.json"))
    (folder / "dataset_info.json").write_text(about.replace("{DATASET}-", "../../../{DATASET}-"))
    with pytest.raises(UsageError, match="outside of its folder"):
        digits(copied)
    (folder / "dataset_info.json").write_text(about)
    ours = json.loads(features)
    ours["pythonClassName"] = "antigravity.Features"  # importing this one opens a browser
    (folder / "features.json").write_text(json.dumps(ours))
    for config in ({}, {"name": "", "path": str(folder)}):
        with pytest.raises(UsageError, match="only features of TFDS itself"):
            digits(copied, **config)


def test_a_file_that_is_missing_is_found_at_the_start(copied):
    (file,) = (copied / "digits" / "1.1.0").glob("*train*")
    file.unlink()
    with pytest.raises(UsageError, match="is missing: prepare the dataset again"):
        digits(copied)
    assert len(digits(copied, split="test")) == 297


def test_a_damaged_file_gives_bad_records(copied):
    (file,) = (copied / "digits" / "1.1.0").glob("*train*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    record = digits(copied)[3]
    assert record["id"] == "digits/1.1.0/train#3" and record["error"] and "\n" not in record["error"]


@pytest.mark.parametrize("read_before", [False, True])
def test_data_that_is_away_is_waited_for_and_is_no_bad_record(copied, monkeypatch, read_before):
    source = digits(copied)
    if read_before:
        source[1]
    away, here, pauses = copied / "away", copied / "digits", []
    os.rename(here, away)
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    if not read_before:
        with pytest.raises(PassingError, match="cannot read digits/1.1.0/train#7.*is away"):
            source[7]
        assert pauses == list(storage.PAUSES)
        monkeypatch.setattr(storage.time, "sleep", lambda _: os.rename(away, here) if away.exists() else None)
    assert source[7]["image"].shape == (8, 8, 1)
