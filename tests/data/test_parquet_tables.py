"""Parquet: files inside as Hugging Face `datasets` writes them, several tables, and sizes that are checked first."""

import subprocess
import sys

import numpy as np
import pytest

from transfusion.data import images, parquet
from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError

arrow = pytest.importorskip("pyarrow")
from pyarrow import parquet as arrow_parquet  # noqa: E402


def png(value):
    return images.encode_png(np.full((8, 8, 3), value, np.uint8))


def write(path, start=0, count=3, **options):
    numbers = range(start, start + count)
    rows = [{"bytes": png(i), "path": f"{i}.png"} for i in numbers]
    table = arrow.table({"text": [f"n {i}" for i in numbers], "image": rows, "label": list(numbers)})
    arrow_parquet.write_table(table, path, **options)


def read(root, **fields):
    names = {"file_field": "image", "caption_field": "text"} | fields
    return open_source(SourceConfig(kind="folder", path=str(root), **names))


def numbers(source):
    for record in source:
        assert record["caption"] == f"n {record['image'][0, 0, 0]}"
    return [int(record["caption"][2:]) for record in source]


def test_what_hugging_face_writes(tmp_path):
    write(tmp_path / "captions.parquet", count=7, row_group_size=2)
    source = read(tmp_path)
    assert numbers(source) == list(range(7)) and source[4]["id"] == f"{tmp_path}/captions.parquet#4"
    assert source[-1]["caption"] == "n 6" and source[0]["caption"] == "n 0"
    assert "caption" not in read(tmp_path, caption_field="")[0]


def test_bytes_names_and_neither(tmp_path):
    (tmp_path / "x.png").write_bytes(png(5))
    image = [
        {"bytes": None, "path": "x.png"},
        {"bytes": None, "path": "../y.png"},
        {"bytes": b"no", "path": None},
        None,
    ]
    table = {"image": image, "raw": [png(5), None, b"", b"no"], "text": ["n 5"] * 4, "count": [1] * 4}
    table["again"] = arrow.array(["n 5"] * 4).dictionary_encode()
    arrow_parquet.write_table(arrow.table(table), tmp_path / "captions.parquet")
    for field in ("image", "raw"):
        source = read(tmp_path, file_field=field)
        assert source[0]["caption"] == "n 5" and source[0]["image"][0, 0, 0] == 5
        assert all("error" in source[i] and "#" in source[i]["id"] + "#" for i in range(1, 4))
    assert read(tmp_path, caption_field="again")[0]["caption"] == "n 5"
    with pytest.raises(UsageError, match="'count' holds int64: file_field must be a column of file names"):
        read(tmp_path, file_field="count")
    with pytest.raises(UsageError, match="no column 'file_name'.*files lie in 'image': set file_field='image'"):
        read(tmp_path, file_field="file_name")


def test_columns_of_other_types(tmp_path):
    (tmp_path / "x.png").write_bytes(png(5))
    for caption, wrong in ([["n 5", "b"], "list"], [{"en": "n 5"}, "dict"], [5, "int"]):
        for file in ("x.png", png(5)):
            arrow_parquet.write_table(arrow.table({"image": [file], "text": [caption]}), tmp_path / "captions.parquet")
            assert read(tmp_path)[0]["error"] == f"the caption is of type {wrong}, not text"


@pytest.mark.parametrize("names", ["string", "large_string", "string_view"])
@pytest.mark.parametrize("data", ["binary", "large_binary", "binary_view"])
def test_columns_of_all_kinds_of_text_and_bytes(tmp_path, names, data):
    (tmp_path / "x.png").write_bytes(png(5))
    texts = arrow.array(["n 5", "n 5"], getattr(arrow, names)())
    for files in (
        arrow.array(["x.png"] * 2, getattr(arrow, names)()),
        arrow.array([png(5)] * 2, getattr(arrow, data)()),
    ):
        try:
            arrow_parquet.write_table(arrow.table({"image.file": files, "text": texts}), tmp_path / "captions.parquet")
        except arrow.ArrowNotImplementedError:
            pytest.skip("this pyarrow cannot write views")
        assert numbers(read(tmp_path, file_field="image.file")) == [5, 5]


def test_several_tables(tmp_path):
    for i in range(3):
        write(tmp_path / f"train-0000{i}-of-00003.parquet", start=3 * i)
    assert numbers(read(tmp_path)) == list(range(9))
    write(tmp_path / "test-00000-of-00001.parquet", start=90)
    with pytest.raises(UsageError, match="Parquet files of test and train: set captions"):
        read(tmp_path)
    assert numbers(read(tmp_path, captions="train-*.parquet")) == list(range(9))
    assert numbers(read(tmp_path, captions="t{rain-00001,est-00000}-of-0000*.parquet")) == [3, 4, 5, 90, 91, 92]
    with pytest.raises(UsageError, match="no captions file"):
        read(tmp_path, captions="valid*.parquet")


def test_damaged_tables_are_one_line(tmp_path):
    path = tmp_path / "captions.parquet"
    write(path, count=50)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    zeroed = data[:footer] + bytes(40) + data[footer + 40 :]
    for damaged in (b"", b"PAR1", data[: len(data) // 2], zeroed):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="cannot read .*captions.parquet") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(data[:100] + bytes(1000) + data[1100:])
    for record in read(tmp_path):
        assert "error" not in record or "\n" not in record["error"]


def test_a_group_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 2_000_000)
    path = tmp_path / "captions.parquet"
    noise = np.random.default_rng(0).bytes(300_000)
    table = arrow.table({"image": [noise] * 100, "text": ["a"] * 100})  # the bytes are stored once
    arrow_parquet.write_table(table, path, dictionary_pagesize_limit=10**7)
    assert path.stat().st_size < 1_000_000
    assert "unpacks to more than the limit" in read(tmp_path)[99]["error"]
    arrow_parquet.write_table(table, path, use_dictionary=False, compression="zstd")
    with pytest.raises(UsageError, match="row group 0 unpacks to .* write it with row_group_size=100"):
        read(tmp_path)


BOMB = """
import resource, sys
import pyarrow, pyarrow.parquet
from transfusion.data.sources import open_source
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(len(open_source(SourceConfig(kind="folder", path=sys.argv[1]))))
except UsageError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("rows, column", [(20_000_000, False), (500_000, True)])
def test_small_files_do_not_fill_the_memory(tmp_path, rows, column):
    name = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(rows, np.int8)), arrow.array(["a.png"]))
    table = {"file_name": name, "caption": name}
    if column:  # one that nobody asked for
        table["more"] = arrow.DictionaryArray.from_arrays(
            arrow.array(np.zeros(rows, np.int8)), arrow.array(["x" * 50_000])
        )
    arrow_parquet.write_table(arrow.table(table), tmp_path / "captions.parquet", store_schema=False)
    assert (tmp_path / "captions.parquet").stat().st_size < 200_000
    done = subprocess.run([sys.executable, "-c", BOMB, str(tmp_path)], capture_output=True, text=True, timeout=120)
    answer, megabytes = done.stdout.splitlines()
    assert answer == str(rows) if column else "more than 10000000 rows" in answer
    assert int(megabytes) < 400, done.stdout


@pytest.mark.parametrize("kind", ["folder", "records"])
def test_rows_in_random_order_unpack_each_group_once_while_memory_lasts(tmp_path, monkeypatch, kind):
    path, read_group, unpacked = tmp_path / "captions.parquet", parquet.read_group, []
    write(path, count=40, row_group_size=5)
    monkeypatch.setattr(parquet, "read_group", lambda *a: unpacked.append(a[1]) or read_group(*a))
    order = [int(i) for i in np.random.default_rng(0).permutation(40)]

    def opened():
        found = open_source(SourceConfig(kind="records", path=str(path), reader="datasets"))
        return found if kind == "records" else read(tmp_path)

    source = opened()
    for _ in range(2):
        assert [source[i]["caption"] for i in order] == [f"n {i}" for i in order]
    assert sorted(unpacked) == list(range(8))
    unpacked.clear()
    size = sum(batch.nbytes for batch in read_group(str(path), 0, parquet.open_metadata(str(path))))
    monkeypatch.setattr(parquet, "GROUP_BYTES", 3 * size)
    source = opened()
    assert [source[i]["caption"] for i in order] == [f"n {i}" for i in order]
    assert 8 < len(unpacked) <= 40 and parquet._KEPT._used <= 3 * size
