"""Every kind of source can hold out a share of its records: the same ones always, and never in both parts."""

import io
import shutil
import tarfile

import numpy as np
import pytest
import tiny

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.hold_out import Subset, fraction, part_of
from transfusion.data.images import encode_png
from transfusion.data.sources import open_source
from transfusion.errors import UsageError


def write_tar(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name in names:
            for suffix, data in ((".png", encode_png(np.zeros((8, 8, 1), np.uint8))), (".txt", f"of {name}".encode())):
                info = tarfile.TarInfo(name + suffix)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


def write(kind, root, data_dir):
    """The config of a source of each kind with some 60 to 300 records."""
    if kind == "tfds":
        return SourceConfig(name="digits", path=data_dir, split="test")
    if kind == "folder":
        return SourceConfig(kind="folder", path=tiny.write_folder(root / "folder", 80))
    if kind == "webdataset":
        for shard in range(2):
            write_tar(root / "tars" / f"{shard}.tar", [f"{i:03}" for i in range(40)])
        return SourceConfig(kind="webdataset", path=str(root / "tars"))
    (root / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (root / "texts" / name).write_text("\n\n".join(f"{name} {i} {'word ' * 20}" for i in range(200)))
    return SourceConfig(kind="text", path=str(root / "texts"), record_bytes=300)


def ids(config, **changes):
    source = open_source(SourceConfig(**vars(config) | changes), pixel_limit=10**6)
    records = [source[i] for i in range(len(source))]
    assert not any("error" in record for record in records)
    return [str(record["id"]).removeprefix(config.path) for record in records]


@pytest.mark.parametrize("kind", ["tfds", "folder", "webdataset", "text"])
def test_the_two_parts_are_the_whole_and_never_overlap(kind, tmp_path, data_dir):
    config = write(kind, tmp_path, data_dir)
    whole = ids(config)
    train, held_out = ids(config, hold_out=0.2), ids(config, hold_out=0.2, part="held_out")
    assert sorted(train + held_out) == sorted(whole) and not set(train) & set(held_out)
    assert 0.08 * len(whole) < len(held_out) < 0.35 * len(whole)
    assert train == [name for name in whole if name in set(train)]  # in the source's order
    more = ids(config, hold_out=0.4, part="held_out")
    assert set(held_out) < set(more)  # a larger share only adds
    if kind == "tfds":
        return
    moved = shutil.move(config.path, tmp_path / "elsewhere")
    again = SourceConfig(**vars(config) | {"path": str(moved)})
    assert ids(again, hold_out=0.2, part="held_out") == held_out  # wherever it lies


def test_records_that_are_added_move_none_from_part_to_part(tmp_path):
    config = SourceConfig(kind="folder", path=tiny.write_folder(tmp_path / "set", 60), hold_out=0.3)
    before, before_out = set(ids(config)), set(ids(config, part="held_out"))
    rows = (tmp_path / "set" / "captions.jsonl").read_text().splitlines()
    for i in range(40):
        shutil.copy(tmp_path / "set" / "0.png", tmp_path / "set" / f"new {i}.png")
        rows.insert(0, f'{{"file_name": "new {i}.png", "caption": "new"}}')
    (tmp_path / "set" / "captions.jsonl").write_text("\n".join(rows))
    assert before < set(ids(config)) and before_out < set(ids(config, part="held_out"))


def test_all_captions_of_a_file_are_in_one_part(tmp_path):
    folder = tmp_path / "set"
    tiny.write_folder(folder, 30)
    rows = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(rows * 2 + rows.replace('"file_name": "', '"file_name": "./'))
    config = SourceConfig(kind="folder", path=str(folder), hold_out=0.3)
    train, held_out = ([name.replace("/./", "/") for name in ids(config, part=p)] for p in ("train", "held_out"))
    assert not set(train) & set(held_out) and all(held_out.count(name) == 3 for name in held_out)


def test_the_hash_is_fixed_and_even():
    assert fraction("12.png") == 0.3740622672773004
    assert np.mean([fraction(str(i)) < 0.1 for i in range(5000)]) == pytest.approx(0.1, abs=0.015)


def test_a_part_ends_and_a_source_without_names_counts(tmp_path):
    plain = [{"id": str(i), "text": "x"} for i in range(50)]
    part = part_of(plain, SourceConfig(hold_out=0.5))
    assert isinstance(part, Subset) and list(part) == [plain[i] for i in range(50) if fraction(str(i)) >= 0.5]
    assert part_of(plain, SourceConfig()) is plain
    for share in (1e-9, 1 - 1e-9):
        with pytest.raises(UsageError, match="holds out"):
            part_of(plain, SourceConfig(hold_out=share))


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"hold_out": 1.0}, "data.sources.mine.hold_out=1.0 must be a share"),
        ({"hold_out": -0.1}, "hold_out=-0.1"),
        ({"hold_out": float("nan")}, "hold_out=nan"),
        ({"part": "heldout", "hold_out": 0.1}, "did you mean 'held_out'"),
        ({"part": "held_out"}, "set hold_out too"),
    ],
)
def test_settings_that_hold_out_nothing_are_one_line(wrong, line):
    with pytest.raises(UsageError, match=line):
        DataConfig(sources={"mine": SourceConfig(**wrong)}).validate()
