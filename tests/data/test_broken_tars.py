"""Tars as they break: whatever is lost is told by shard and offset, and no picture gets the caption of another."""

import io
import os
import tarfile

import numpy as np
import pytest
import watched
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion import storage
from transfusion.data import images
from transfusion.data.config import SourceConfig
from transfusion.data.patterns import braces
from transfusion.data.sources import open_source
from transfusion.errors import UsageError


def png(value):
    return images.encode_png(np.full((4, 4, 1), value, np.uint8))


def tar_of(members, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if info is data else len(data)
            tar.addfile(info, None if info is data else io.BytesIO(data))
    return out.getvalue()


def pairs(count):
    return [
        (f"{i:03}{end}", data) for i in range(count) for end, data in ((".png", png(i)), (".txt", f"n {i}".encode()))
    ]


SAMPLES = 8
WHOLE = tar_of(pairs(SAMPLES))
MEMBER = 1024  # bytes of a member here: a header and one block


def read(path, **fields):
    return list(open_source(SourceConfig(kind="webdataset", path=str(path), **fields)))


def read_bytes(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    return read(tmp_path / "x.tar")


def check_pairs(records):
    """Every record is right or an error; returns the numbers of the right ones."""
    right = [record for record in records if "error" not in record]
    for record in right:
        assert record["caption"] == f"n {record['image'][0, 0, 0]}", record["id"]
    return [int(record["caption"][2:]) for record in right]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    folder = "/".join(["ä" * 20] * (3 if form == tarfile.USTAR_FORMAT else 30))
    records = read_bytes(tmp_path, tar_of([(f"{folder}/7.png", png(7)), (f"{folder}/7.txt", b"n 7")], form))
    assert check_pairs(records) == [7] and records[0]["id"].endswith(f"x.tar:{folder}/7")


def test_one_byte_of_a_header(tmp_path):
    for member in range(2 * SAMPLES):
        for place in (0, 124, 150, 156):
            data = bytearray(WHOLE)
            data[member * MEMBER + place] ^= 1
            *before, last = read_bytes(tmp_path, bytes(data))
            assert check_pairs(before) == list(range(member // 2))
            assert f"at byte {member * MEMBER}: the header is damaged" in last["error"] and "x.tar" in last["id"]


def test_a_tar_that_is_cut_anywhere(tmp_path):
    for length in [1, 511, 512, 600, 1024, 1300, 5 * MEMBER, 5 * MEMBER + 100, 2 * SAMPLES * MEMBER]:
        records = read_bytes(tmp_path, WHOLE[:length])
        assert "error" in records[-1] and "at byte" in records[-1]["error"]
        assert check_pairs(records) == list(range(length // (2 * MEMBER)))
    one_block = read_bytes(tmp_path, WHOLE[: 2 * SAMPLES * MEMBER + 512])
    assert "one empty block instead of two" in one_block[-1]["error"]
    assert len(read_bytes(tmp_path, WHOLE)) == SAMPLES
    with pytest.raises(UsageError, match="holds no records"):
        read_bytes(tmp_path, bytes(1024))


def test_what_follows_the_end_is_told(tmp_path):
    records = read_bytes(tmp_path, WHOLE + tar_of(pairs(2)))  # cat a.tar b.tar
    assert check_pairs(records) == list(range(SAMPLES)) and "goes on after its end" in records[-1]["error"]


def resized(data, size, member=1):
    """The tar with another size, 12 bytes, in the header of a member, and the right sum."""
    data, start = bytearray(data), member * MEMBER
    data[start + 124 : start + 136] = size
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


@pytest.mark.parametrize(
    "size, why",
    [
        (b"\xff" * 12, "gives no size"),  # -1, which reads the whole rest of the tar
        (b"\x80" + b"\xff" * 11, "is cut off"),
        (b"77777777777\0", "is cut off"),
        (b"9999\0      \0", "gives no size"),
    ],
)
def test_a_size_that_lies(tmp_path, size, why):
    records = read_bytes(tmp_path, resized(WHOLE, size))
    assert why in records[-1]["error"] and not check_pairs(records)


def test_a_member_that_swallows_the_next_ones(tmp_path):
    records = read_bytes(tmp_path, resized(WHOLE, b"%011o\0" % (3 * MEMBER), member=0))
    assert not check_pairs(records)
    assert "caption is empty or missing" in records[0]["error"] and "header is damaged" in records[-1]["error"]


def test_a_member_that_is_there_twice(tmp_path):
    members = [("7.png", png(10)), ("7.txt", b"a red car"), ("7.png", png(200)), ("8.png", png(8)), ("8.txt", b"n 8")]
    records = read_bytes(tmp_path, tar_of([*members, ("8.TXT", b"n 9"), ("9.png", png(9)), ("9.txt", b"n 9")]))
    assert [record.get("error") for record in records] == [
        "the tar holds 7.png twice",
        "the tar holds 8.TXT twice",
        None,
    ]
    # In two shards the same key is two samples.
    (tmp_path / "y.tar").write_bytes(tar_of([("9.png", png(9)), ("9.txt", b"n 9")]))
    assert check_pairs(read(tmp_path)) == [9, 9]


def test_links_devices_and_folders_within_a_tar_are_left_out(tmp_path, caplog):
    link, device, folder = (tarfile.TarInfo(f"{name}.png") for name in ("link", "device", "folder"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type, folder.type = tarfile.CHRTYPE, tarfile.DIRTYPE
    extra = [("", link), ("", device), ("", folder), ("._3.png", b"of a Mac")]
    with caplog.at_level("INFO", logger="absl"):
        assert check_pairs(read_bytes(tmp_path, tar_of([*pairs(2), *extra]))) == [0, 1]
    assert "left out 2 links and devices, 1 files whose names" in caplog.text
    found = read_bytes(tmp_path, tar_of([*pairs(2), ("", link), ("link.txt", b"a second name of a picture")]))
    assert "a link is left out" in found[2]["error"]


def test_attributes_of_macos_may_be_long(tmp_path):
    long = tarfile.TarInfo("000.png")
    long.pax_headers, data = {"LIBARCHIVE.xattr.com.apple.ResourceFork": "A" * 300_000}, png(0)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        long.size = len(data)
        tar.addfile(long, io.BytesIO(data))
    header_and_image = out.getvalue().rstrip(b"\0")
    header_and_image += b"\0" * (-len(header_and_image) % 512)
    assert check_pairs(read_bytes(tmp_path, header_and_image + tar_of(pairs(2)[1:]))) == [0, 1]


def test_captions_in_a_tar_are_read_as_those_of_a_folder(tmp_path):
    texts = ["n 1".encode("utf-8-sig"), "n 2".encode("utf-16"), "caf\xe9".encode("latin-1"), b"a\0b", b"x" * 5_000_000]
    members = [
        (f"{i}{end}", data) for i, text in enumerate(texts, 1) for end, data in ((".png", png(i)), (".txt", text))
    ]
    members += [("6.png", png(6)), ("6.json", b"[" * 200_000), ("7.png", png(7)), ("7.json", b'{"caption": "\\ud800"}')]
    records = read_bytes(tmp_path, tar_of(members))
    assert check_pairs(records[:2]) == [1, 2]
    whys = ["not UTF-8 text", "NUL", "over the limit", "nested too deeply", "not Unicode text"]
    for record, why in zip(records[2:], whys, strict=True):
        assert why in record["error"]


def test_compressed_tars_are_refused(tmp_path):
    for suffix, tool in (("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")):
        with tarfile.open(tmp_path / f"x.{suffix}", f"w:{suffix}") as tar:
            tar.addfile(tarfile.TarInfo("a"))
        with pytest.raises(UsageError, match=f"is compressed.*{tool}"):
            read(tmp_path / f"x.{suffix}")
    (tmp_path / "only").mkdir()
    (tmp_path / "x.gz").rename(tmp_path / "only" / "x.tar.gz")
    with pytest.raises(UsageError, match="x.tar.gz is compressed"):
        read(tmp_path / "only")


def test_a_shard_that_is_replaced_or_away(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01,))
    (tmp_path / "x.tar").write_bytes(WHOLE)
    source = open_source(SourceConfig(kind="webdataset", path=str(tmp_path)))
    (tmp_path / "x.tar").write_bytes(tar_of([("00.png", png(99)), *pairs(SAMPLES)]))
    assert "has changed since it was opened" in source[3]["error"]
    (tmp_path / "x.tar").unlink()
    with pytest.raises(storage.StorageError, match="is not there any more"):
        source[3]


# --- names ------------------------------------------------------------------------------------------------------------


def test_braces_as_in_webdataset(tmp_path):
    assert list(braces("a-{008..011}.tar")) == [f"a-{n}.tar" for n in ("008", "009", "010", "011")]
    assert list(braces("{a,b}{1..2}")) == ["a1", "a2", "b1", "b2"]
    assert set(braces("{x,{1..3}}")) == {"x", "1", "2", "3"}
    assert list(braces("{2..0}-{0..4..2}")) == [f"{a}-{b}" for a in (2, 1, 0) for b in (0, 2, 4)]
    assert list(braces("{a}{}")) == ["{a}{}"]
    for i in range(3):
        (tmp_path / f"x-{i:03}.tar").write_bytes(tar_of([(f"{i}.png", png(i)), (f"{i}.txt", f"n {i}".encode())]))
    assert check_pairs(read(tmp_path / "x-{000..002}.tar")) == [0, 1, 2]
    assert check_pairs(read(tmp_path / "x-{000,002}.tar")) == [0, 2]
    assert check_pairs(read(tmp_path / "{x,x}-00[01].tar")) == [0, 1]
    with pytest.raises(UsageError, match="names 2 files that do not exist, such as .*x-003.tar"):
        read(tmp_path / "x-{000..004}.tar")
    for pattern in ("x-{0..99999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(UsageError, match="stands for more than 100000 names"):
            read(tmp_path / pattern)


def test_a_name_that_exists_is_meant_as_it_stands(tmp_path):
    for name in ("set[1]", "{a,b}"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x-{0..9}[2].tar").write_bytes(WHOLE)
        for path in (folder, folder / "x-{0..9}[2].tar", folder / "*.tar"):
            if path.name != "*.tar" or name == "set[1]":
                assert len(read(path)) == SAMPLES


def test_links_to_tars(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.tar").write_bytes(WHOLE)
    folder = tmp_path / "set"
    folder.mkdir()
    os.symlink(tmp_path / "store" / "x.tar", folder / "x.tar")
    os.symlink(tmp_path / "nowhere", folder / "y.tar")
    os.mkfifo(folder / "z.tar")
    errors = [record["error"] for record in read(folder)]
    assert ["set follow_links=True" in error for error in errors] == [True, True, False] and "it is a pipe" in errors[2]
    records = read(folder, follow_links=True)
    assert check_pairs(records) == list(range(SAMPLES)) and "No such file" in records[-2]["error"]
    assert len(read(folder / "x.tar")) == SAMPLES  # the user's own word


# --- whatever the bytes are -------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2 * SAMPLES * MEMBER), st.binary(min_size=1, max_size=12)), max_size=4),
    end=st.none() | st.integers(0, len(WHOLE)),
    moved=st.none() | st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_bytes_give_right_pairs_or_errors(tmp_path_factory, changes, end, moved):
    data = bytearray(WHOLE)
    for place, piece in changes:
        data[place : place + len(piece)] = piece
    if moved is not None:  # a block is put elsewhere
        block = data[moved[0] * 512 : moved[0] * 512 + 512]
        data[moved[1] * 512 : moved[1] * 512 + len(block)] = block
    data = bytes(data[:end])
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        with watched.confined(folder):
            records = read_bytes(folder, data)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    if not changes and moved is None:
        right = check_pairs(records)
        assert right == list(range(len(right)))
        assert len(right) == SAMPLES or "at byte" in records[-1]["error"]
    for record in records:
        assert ("error" in record) != ("image" in record) and "\n" not in record.get("error", "")
