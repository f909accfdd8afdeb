"""Captions files as people save them: encodings, quotation marks, bad rows, links, and storage that is away."""

import json
import os
import shutil

import numpy as np
import pytest
import watched
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion import storage
from transfusion.data import images, tables
from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError

GREY = images.encode_png(np.full((4, 4, 1), 9, np.uint8))


@pytest.fixture
def root(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(GREY)
    return tmp_path


def records(root, name, data, **fields):
    (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    source = open_source(SourceConfig(kind="folder", path=str(root), captions=name, **fields))
    return list(source)


def captions(found):
    return [record.get("caption", record.get("error")) for record in found]


def test_a_caption_that_is_no_text_is_called_so(root):
    values = [["a", "b"], 7, {"en": "a"}, None, "a"]
    lines = "".join(json.dumps({"file_name": f"{i}.png", "caption": v}) + "\n" for i, v in enumerate(values))
    assert captions(records(root, "a.jsonl", lines)) == [
        "the caption is of type list, not text",
        "the caption is of type int, not text",
        "the caption is of type dict, not text",
        "the caption is empty or missing",
        "a",
    ]
    assert captions(records(root, "a.jsonl", '{"file_name": 0, "caption": "a"}')) == [
        "the name of the file is of type int, not text"
    ]


@pytest.mark.parametrize("left", [False, True], ids=["gone", "an empty folder"])
def test_files_on_a_disk_of_their_own_may_be_away(root, monkeypatch, left):
    (root / "images").mkdir()
    for i in range(4):
        (root / "images" / f"{i}.png").write_bytes(GREY)
    rows = "".join(f"images/{i}.png,n {i}\n" for i in (0, 9, 1, 2, 3))  # there is no 9
    (root / "a.csv").write_text("file_name,caption\n" + rows)
    source = open_source(SourceConfig(kind="folder", path=str(root), captions="a.csv"))
    assert "caption" in source[0] and "No such file" in source[1]["error"] and "caption" in source[2]
    os.rename(root / "images", root / "away")
    if left:
        (root / "images").mkdir()
    monkeypatch.setattr(storage, "PAUSES", (0.0,))
    with pytest.raises(storage.StorageError, match="1.png is not there any more"):
        source[3]
    if left:
        (root / "images").rmdir()
    os.rename(root / "away", root / "images")
    assert source[3]["caption"] == "n 2" and "No such file" in source[1]["error"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_windows_and_macs_save_is_read(root, encoding, end):
    rows = ["un café", "line\u2028separator", "日本"]
    table = end.join(["file_name,caption", *(f"{i}.png,{row}" for i, row in enumerate(rows))])
    assert captions(records(root, "a.csv", table.encode(encoding))) == rows
    lines = end.join(
        json.dumps({"file_name": f"{i}.png", "caption": r}, ensure_ascii=False) for i, r in enumerate(rows)
    )
    assert captions(records(root, "a.jsonl", lines.encode(encoding))) == rows


def test_rows_in_another_encoding_are_bad_rows_with_their_line(root):
    found = records(root, "a.csv", "file_name,caption\n0.png,un café\n1.png,a dog\n".encode("cp1252"))
    assert captions(found) == ["line 2 is not UTF-8 text: save the file as UTF-8", "a dog"]
    assert found[0]["id"] == f"{root}/a.csv:2"
    lines = '{"file_name": "0.png", "caption": "ü"}\n{"file_name": "1.png", "caption": "b"}'
    assert captions(records(root, "a.jsonl", lines.encode("latin-1"))) == [
        "line 1 is not UTF-8 text: save the file as UTF-8",
        "b",
    ]


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("a.csv", "file_name,caption\n0.png,a\n".encode("utf-16-le"), "a.csv: it is no text.*NUL.*UTF-8"),
        ("a.jsonl", GREY, "a.jsonl: it is no text"),
        ("a.csv", b"\xff\xfefile_name", "line 1 is not UTF-16 text"),
        ("a.csv", "file_name;caption\n0.png;a\n", "separate them by commas, not by ';'"),
        ("a.csv", "file_name,caption,caption\n0.png,a,b\n", "'caption' twice"),
        ("a.csv", "caf\xe9,caption\n".encode("latin-1"), "names the columns, is not UTF-8"),
        ("a.csv", "", "holds no records"),
        ("a.csv", "file_name,caption\n", "holds no records"),
        ("a.jsonl", "\n\n", "holds no records"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(root, name, data, why):
    with pytest.raises(UsageError, match=why) as caught:
        records(root, name, data)
    assert "\n" not in str(caught.value)


def test_an_open_quotation_mark_swallows_no_rows(root):
    head = "file_name,caption\n"
    wrong = '0.png,a\n1.png,"b\n2.png,c\n3.png,d\n'
    expected = ["a", "line 3 opens a quotation mark that is not closed", "c", "d"]
    assert captions(records(root, "a.csv", head + wrong)) == expected
    # One that a later row closes, in the middle of a cell or, by chance, at the end of one.
    found = captions(records(root, "a.csv", head + wrong + '4.png,"e"\n5.png,f\n'))
    assert found == [*expected, "e", "f"]
    found = captions(records(root, "a.csv", head + wrong + '4.png,a plate of 5"\n'))
    assert found[1] == "line 3 opens a quotation mark that a later row closes"
    assert found[2:] == ["c", "d", 'a plate of 5"']
    # A cell may have line breaks, and a quotation mark within it.
    found = captions(records(root, "a.csv", head + '0.png,"a cat,\nsitting on a ""mat"""\n1.png,5" tall\n'))
    assert found == ['a cat,\nsitting on a "mat"', '5" tall']
    assert "write it twice" in captions(records(root, "a.csv", head + '0.png,"hello" she said\n1.png,b\n'))[0]


def test_rows_of_another_length(root):
    rows = "0.png,a cat, sitting\n1.png\n2.png,c,,\n,,\n\n3.png,d\n"
    found = captions(records(root, "a.csv", "file_name,caption\n" + rows))
    assert found == [
        "line 2 has 3 cells, and the header 2: a text with commas needs quotation marks",
        "line 3 has 1 cells, and the header 2",
        "c",
        "d",
    ]


def test_cells_and_lines_that_are_too_long(root, monkeypatch):
    monkeypatch.setattr(tables.foreign_text, "TEXT_BYTES", 200_000)
    long, longer = "x" * 150_000, "y" * 300_000
    found = captions(records(root, "a.csv", f"file_name,caption\n0.png,{long}\n1.png,{longer}\n2.png,c\n"))
    assert found[0] == long and "more than 200000 characters" in found[1] and found[2:] == ["c"]
    lines = [json.dumps({"file_name": "0.png", "caption": text}) for text in (long, longer, "c")]
    found = captions(records(root, "a.jsonl", "\n".join(lines)))
    assert found[0] == long and "more than 200000 characters" in found[1] and found[2:] == ["c"]


def test_json_that_is_hostile_is_one_bad_row(root):
    rows = [
        "[" * 200_000,
        '{"file_name": "0.png", "caption": "\\ud800"}',
        '{"file_name": "0.png", "caption": "a", "caption": "b"}',
        '{"file_name": "0.png", "caption": ' + "9" * 5000 + "}",
        '{"file_name": "\\ud800.png", "caption": "a"}',
        '{"file_name": "0\\u0000.png", "caption": "a"}',
        '{"file_name": 7, "caption": "a"}',
        '{"file_name": "0.png", "caption": "good"}',
    ]
    found = records(root, "a.jsonl", "\n".join(rows))
    errors = [record.get("error") for record in found]
    assert "nested too deeply" in errors[0] and "not Unicode text" in errors[1] and "names 'caption' twice" in errors[2]
    assert all(errors[3:7]) and errors[7] is None
    for record in found:
        record["id"].encode("utf-8"), record.get("error", "").encode("utf-8")  # both can be logged


def test_a_file_of_another_kind_is_refused_before_it_fills_the_memory(root, monkeypatch):
    monkeypatch.setattr(tables, "_BAD_ROWS", 50)
    with pytest.raises(UsageError, match="more than 50 rows that cannot be read"):
        records(root, "a.jsonl", "x\n" * 1000)
    monkeypatch.setattr(tables, "MOST_ROWS", 5)
    with pytest.raises(UsageError, match="more than 5 rows"):
        records(root, "a.csv", "file_name,caption\n" + "0.png,a\n" * 6)


# --- what lies in the folder ------------------------------------------------------------------------------------------


def test_links_out_of_the_folder_are_followed_only_if_that_is_asked_for(root, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    (store / "x.png").write_bytes(GREY)
    (store / "captions.jsonl").write_text('{"file_name": "link.png", "caption": "a"}\n')
    os.symlink(store / "x.png", root / "link.png")
    os.symlink(root / "0.png", root / "inside.png")
    os.symlink(store, root / "more")
    rows = "file_name,caption\nlink.png,a\ninside.png,b\nmore/x.png,c\n../x.png,d\n/etc/passwd,e\n"
    found = records(root, "a.csv", rows)
    assert "set follow_links=True" in found[0]["error"] and "set follow_links=True" in found[2]["error"]
    assert found[1]["caption"] == "b" and all("outside the folder" in found[i]["error"] for i in (3, 4))
    found = records(root, "a.csv", rows, follow_links=True)
    assert captions(found[:3]) == ["a", "b", "c"]
    assert all("outside the folder" in found[i]["error"] for i in (3, 4))
    os.symlink(store / "captions.jsonl", root / "captions.jsonl")
    with pytest.raises(UsageError, match="captions.jsonl is a link to outside .*follow_links=True"):
        open_source(SourceConfig(kind="folder", path=str(root)))
    assert open_source(SourceConfig(kind="folder", path=str(root), follow_links=True))[0]["caption"] == "a"


def test_pipes_devices_and_huge_files_are_refused_before_they_are_read(root):
    os.mkfifo(root / "pipe.png")
    os.symlink("/dev/zero", root / "zero.png")
    with open(root / "huge.png", "wb") as file:
        file.truncate(1 << 42)
    (root / "folder.png").mkdir()
    rows = "file_name,caption\npipe.png,a\nzero.png,b\nhuge.png,c\nfolder.png,d\n0.png,e\n"
    errors = captions(records(root, "a.csv", rows, follow_links=True))
    assert "it is a pipe" in errors[0] and "it is a device" in errors[1] and "over the limit" in errors[2]
    assert "it is a folder" in errors[3] and errors[4] == "e"
    os.mkfifo(root / "captions.csv")
    with pytest.raises(UsageError, match="captions.csv: it is a pipe"):
        open_source(SourceConfig(kind="folder", path=str(root)))


def test_storage_that_is_away_is_no_bad_record(root, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    folder = root / "set"
    folder.mkdir()
    (folder / "0.png").write_bytes(GREY)
    (folder / "captions.csv").write_text("file_name,caption\n0.png,a\nabsent.png,b\n")
    source = open_source(SourceConfig(kind="folder", path=str(folder)))
    assert "No such file" in source[1]["error"]  # in a folder that is there
    folder.rename(root / "moved")
    for index in range(2):
        with pytest.raises(storage.StorageError, match="is not there any more .3 attempts"):
            source[index]
    folder.mkdir()  # as the place of a disk that is not mounted
    with pytest.raises(storage.StorageError):
        source[0]
    shutil.copytree(root / "moved", folder, dirs_exist_ok=True)
    assert source[0]["caption"] == "a"


def test_storage_that_fails_for_a_moment_is_read_again(root, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    (root / "a.csv").write_text("file_name,caption\n0.png,a\n")
    source = open_source(SourceConfig(kind="folder", path=str(root), captions="a.csv"))
    fails, real = [5, 5], os.open

    def failing(path, *args, **kwargs):
        if str(path).endswith(".png") and fails:
            raise OSError(fails.pop(), "Input/output error", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    assert source[0]["caption"] == "a" and not fails
    fails += [116] * 3  # a stale NFS handle
    with pytest.raises(storage.StorageError, match="3 attempts"):
        source[0]


def test_a_source_can_be_iterated(root):
    (root / "a.csv").write_text("file_name,caption\n0.png,a\n1.png,b\n")
    source = open_source(SourceConfig(kind="folder", path=str(root), captions="a.csv"))
    assert [record["caption"] for record in source] == ["a", "b"]
    assert source[-1]["caption"] == "b" and source[np.int64(1)]["caption"] == "b"
    for index in (2, -3):
        with pytest.raises(IndexError):
            source[index]


# --- whatever the bytes are -------------------------------------------------------------------------------------------

_CSV = b'file_name,caption\n0.png,a cat\n1.png,"a ""dog"", big"\n2.png,\xc3\xbc\n../x.png,d\n/etc/passwd,e\n'
_JSONL = b'{"file_name": "0.png", "caption": "a"}\n{"file_name": "1.png", "caption": "\\ud83d\\ude00"}\n[1]\n'
_PIECES = st.sampled_from([b'"', b"\n", b"\r", b",", b"\0", b"\xff", b"\xef\xbb\xbf", b"[", b"{", b"../", b"\xff\xfe"])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["a.csv", "a.jsonl"]),
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 6), _PIECES | st.binary(max_size=4)), max_size=6),
    end=st.integers(1, 200),
)
def test_any_bytes_give_records_errors_or_one_line(tmp_path_factory, name, changes, end):
    root = tmp_path_factory.mktemp("fuzz")
    for i in range(3):
        (root / f"{i}.png").write_bytes(GREY)
    data = (_CSV if name == "a.csv" else _JSONL)[:end]
    for place, length, piece in changes:
        data = data[:place] + piece + data[place + length :]
    try:
        with watched.confined(root):
            found = records(root, name, data)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    for record in found:
        assert ("error" in record) != ("image" in record)
        assert "\n" not in record.get("error", "") and "\ufffd" not in record.get("caption", "")
        if "image" in record:
            assert (record["image"] == 9).all() and record["caption"].encode("utf-8").strip()
