"""Sources: each format gives records; each kind of broken record is named and stops nothing; settings are checked."""

import csv
import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from transfusion.data import images, text_records
from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError

RED = images.encode_png(np.full((6, 8, 3), (255, 0, 0), np.uint8))


def huge_png(side):
    """A file of 57 bytes whose header promises side * side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def tiff32():
    out = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(out, "TIFF")
    return out.getvalue()


FILES = {
    "good.png": RED,
    "sub/grey.png": images.encode_png(np.zeros((4, 4, 1), np.uint8)),
    "truncated.png": RED[:48],
    "noise.png": b"no image at all",
    "huge.png": huge_png(8_000),
    "bomb.png": huge_png(100_000),
    "deep.png": tiff32(),
    "empty.png": b"",
}
ROWS = [
    ("good.png", "a red box"),
    ("sub/grey.png", "a black box"),
    ("truncated.png", "cut"),
    ("noise.png", "noise"),
    ("huge.png", "huge"),
    ("bomb.png", "bomb"),
    ("deep.png", "deep"),
    ("empty.png", "empty"),
    ("absent.png", "absent"),
    ("../outside.png", "outside"),
    ("link.png", "link"),
    ("good.png", ""),
]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (tmp_path / "outside.png").write_bytes(RED)
    os.symlink(tmp_path / "outside.png", root / "link.png")
    return root


def write_captions(root, kind, rows):
    table = [{"file_name": name, "caption": caption} for name, caption in rows]
    if kind == "jsonl":
        (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    elif kind == "csv":
        with open(root / "captions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "caption"])
            writer.writeheader()
            writer.writerows(table)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(table), root / "captions.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_folder_gives_records_and_names_each_broken_one(folder, kind):
    write_captions(folder, kind, ROWS)
    source = open_source(SourceConfig(kind="folder", path=str(folder)))
    records = [source[i] for i in range(len(source))]
    assert len(records) == len(ROWS)
    assert records[0]["caption"] == "a red box" and (records[0]["image"][0, 0] == (255, 0, 0)).all()
    assert records[0]["image"].shape == (6, 8, 3) and records[1]["image"].shape == (4, 4, 1)
    whys = ["not a readable image", "not a readable image", "over the limit", "over the limit", "32 bits"]
    whys += ["not a readable image", "No such file", "outside the folder", "outside the folder", "caption is empty"]
    for (name, _), record, why in zip(ROWS[2:], records[2:], whys, strict=True):
        assert why in record["error"] and name in record["id"], record
        assert "\n" not in record["error"] and "image" not in record


def test_a_broken_line_of_the_captions_is_one_bad_record(folder):
    lines = ['{"file_name": "good.png", "caption": "a red box"}', "{broken", "[1]", '{"caption": "nameless"}', ""]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    source = open_source(SourceConfig(kind="folder", path=str(folder)))
    errors = [source[i].get("error") for i in range(len(source))]
    assert errors == [None, "line 2 is no JSON", "line 3 is no JSON object", "no file_name"]


def test_resolution_and_channels_are_made_alike(folder):
    write_captions(folder, "csv", ROWS[:2])
    source = open_source(SourceConfig(kind="folder", path=str(folder), resolution=5, channels=3))
    assert [source[i]["image"].shape for i in range(2)] == [(5, 5, 3)] * 2
    grey = open_source(SourceConfig(kind="folder", path=str(folder), channels=1))[0]["image"]
    assert grey.shape == (6, 8, 1) and grey[0, 0, 0] == 76  # the luma of pure red


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    with tarfile.open(root / "a-000.tar", "w") as tar:
        add(tar, "x/0001.png", RED)
        add(tar, "x/0001.txt", b"a red box\n")
        add(tar, "x/0002.json", json.dumps({"caption": "from json"}).encode())
        add(tar, "x/0002.PNG", RED)
        add(tar, "0003.png", RED[:40])
        add(tar, "0003.txt", b"broken")
        add(tar, "0004.png", RED)
        add(tar, "0005.txt", b"no image")
        add(tar, "0006.png", RED)
        add(tar, "0006.json", b"{not json")
    with tarfile.open(root / "a-001.tar", "w") as tar:
        for ext, kind in (("jpg", "JPEG"), ("webp", "WEBP")):
            out = io.BytesIO()
            Image.new("RGB", (4, 4), "blue").save(out, kind)
            add(tar, f"{ext}.{ext}", out.getvalue())
            add(tar, f"{ext}.txt", f"a blue {ext}".encode())
    return root


def test_webdataset_is_read_in_place(shards):
    before = sorted(shards.rglob("*"))
    for path in (str(shards), str(shards / "a-*.tar")):
        source = open_source(SourceConfig(kind="webdataset", path=path))
        records = [source[i] for i in range(len(source))]
        assert [r.get("caption") for r in records if "error" not in r] == [
            "a red box",
            "from json",
            "a blue jpg",
            "a blue webp",
        ]
        errors = {r["id"].rsplit(":", 1)[1]: r["error"] for r in records if "error" in r}
        assert errors.keys() == {"0003", "0004", "0005", "0006"}
        assert "not a readable image" in errors["0003"] and "no image" in errors["0005"]
        assert "caption" in errors["0004"]
    assert sorted(shards.rglob("*")) == before


def test_a_tar_that_breaks_off_keeps_what_is_before(shards):
    tar = shards / "a-000.tar"
    tar.write_bytes(tar.read_bytes()[:1800])
    source = open_source(SourceConfig(kind="webdataset", path=str(tar)))
    records = [source[i] for i in range(len(source))]
    assert records[0].get("caption") == "a red box" or "error" in records[0]
    (shards / "b.tar").write_bytes(b"garbage" * 200)
    broken = open_source(SourceConfig(kind="webdataset", path=str(shards / "b.tar")))
    assert len(broken) == 1 and "not a readable uncompressed tar" in broken[0]["error"]


def test_text_files_are_cut_at_paragraphs_and_lose_nothing(tmp_path):
    text = "\n\n".join(f"Paragraph {i}: " + "größer " * (i % 40) for i in range(100))
    (tmp_path / "b.txt").write_text(text)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe broken")
    (tmp_path / "skip.md").write_text("not read")
    source = open_source(SourceConfig(kind="text", path=str(tmp_path), record_bytes=400))
    assert "not UTF-8" in source[0]["error"] and "a.txt" in source[0]["id"]
    records = [source[i]["text"] for i in range(1, len(source))]
    assert "".join("".join(records).split()) == "".join(text.split())
    assert all(len(record.encode()) <= 400 for record in records)
    starts = sum(record.startswith("Paragraph") for record in records)
    assert starts > 0.9 * len(records)


def test_text_without_any_space_is_cut_between_characters():
    data = ("ä" * 999).encode()
    pieces = [data[a:b] for a, b in text_records.spans(data, 101)]
    assert b"".join(pieces) == data and all(piece.decode() for piece in pieces)
    invalid = b"\x80" * 500
    assert b"".join(invalid[a:b] for a, b in text_records.spans(invalid, 64)) == invalid


class Listed:
    def __init__(self, records, error=ValueError):
        self.records, self.error = records, error

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if self.records[index] is None:
            raise self.error("a reader that breaks\nwith two lines")
        return self.records[index]


def test_wrong_types_and_reader_errors_become_error_records(monkeypatch):
    image = np.zeros((4, 4, 3), np.uint8)
    listed = Listed(
        [
            {"id": "float", "image": image.astype(np.float32), "caption": "x"},
            {"id": "flat", "image": image[0], "caption": "x"},
            {"id": "none", "image": image, "caption": None},
            {"id": "bytes", "image": image, "caption": b"x"},
            {"id": "nothing"},
            None,
        ]
    )
    monkeypatch.setitem(open_source.__globals__["SOURCES"], "listed", lambda *_: listed)
    source = open_source(SourceConfig(kind="listed", name="mine"))
    records = [source[i] for i in range(6)]
    assert ["float32, not uint8" in records[0]["error"], "shape" in records[1]["error"]] == [True, True]
    assert all("caption" in records[i]["error"] for i in (2, 3))
    assert "neither" in records[4]["error"]
    assert records[5] == {"id": "mine#5", "error": "ValueError: a reader that breaks with two lines"}
    with pytest.raises(KeyError):  # a programming error is none of the record's
        listed.error = KeyError
        source[5]


def test_settings_that_cannot_work_say_what_to_do(folder, shards, tmp_path):
    write_captions(folder, "csv", ROWS[:1])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "x.png").write_bytes(RED)
    cases = [
        (SourceConfig(kind="foldr"), "did you mean 'folder'"),
        (SourceConfig(kind="folder", path=str(tmp_path / "no")), "no folder"),
        (SourceConfig(kind="folder", path=str(tmp_path / "bare")), "no captions file.*captions.jsonl"),
        (SourceConfig(kind="folder", path=str(folder), caption_field="captoin"), "did you mean 'caption'"),
        (SourceConfig(kind="folder", path=str(folder), file_field="file"), "did you mean 'file_name'"),
        (SourceConfig(kind="folder", path=str(folder), captions="good.png"), "must end in"),
        (SourceConfig(kind="webdataset", path=str(tmp_path / "*.tar")), "no tar file"),
        (SourceConfig(kind="text", path=str(tmp_path / "no.txt")), "no text file"),
        (SourceConfig(kind="text", path=str(tmp_path / "bare")), "holds no records"),
        (SourceConfig(kind="tfds", name="digits", path=str(tmp_path)), "transfusion.prepare"),
        (SourceConfig(kind="tfds", name="digitz", path=str(tmp_path)), "did you mean 'digits'"),
        (SourceConfig(kind="tfds", path=str(tmp_path)), "dataset_info.json"),
    ]
    for config, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            open_source(config)
        assert "\n" not in str(caught.value)


def test_tfds_fields_labels_and_broken_images(tmp_path):
    import tensorflow_datasets as tfds

    from transfusion.data import builders
    from transfusion.data.packaged.base import PackagedBuilder

    class Shapes(PackagedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(shape=(6, 8, 3), dtype=np.uint8),
                "kind": tfds.features.ClassLabel(names=["red_box", "other"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, data in enumerate([RED, RED[:48]]):
                path = tmp_path / f"{i}.png"
                path.write_bytes(data)
                yield i, {"picture": str(path), "kind": 0}

    built = builders.write_files(Shapes(data_dir=str(tmp_path), file_format="array_record"))
    fields = {"image_field": "picture", "label_field": "kind", "caption_template": "a {}"}
    for where in ({"name": "shapes", "path": str(tmp_path)}, {"path": str(built.data_dir)}):
        source = open_source(SourceConfig(**where, **fields))
        records = sorted((source[i] for i in range(2)), key=lambda record: "error" in record)
        assert (records[0]["caption"], records[0]["label"]) == ("a red box", 0)
        assert records[0]["image"].shape == (6, 8, 3)
        assert "not a readable image" in records[1]["error"] and "shapes" in records[1]["id"]
    with pytest.raises(UsageError, match="did you mean 'picture'"):
        open_source(SourceConfig(name="shapes", path=str(tmp_path), image_field="pictur"))
    with pytest.raises(UsageError, match="no captions"):
        open_source(SourceConfig(name="shapes", path=str(tmp_path), image_field="picture"))
