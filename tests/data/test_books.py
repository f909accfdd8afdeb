"""Text files as people have them: encodings, links, what is left out, what is no text."""

import os

import pytest

from transfusion import storage
from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError


def read(path, **fields):
    return [
        record.get("text", record.get("error"))
        for record in open_source(SourceConfig(kind="text", path=str(path), **fields))
    ]


def test_marks_and_encodings(tmp_path):
    (tmp_path / "a.txt").write_bytes("größer".encode("utf-8-sig"))
    (tmp_path / "b.txt").write_bytes("größer".encode("utf-16"))
    (tmp_path / "c.txt").write_bytes("größer".encode("utf-16-le"))
    (tmp_path / "d.txt").write_bytes("größer".encode("cp1252"))
    (tmp_path / "e.txt").write_bytes(b"line\xe2\x80\xa8separator\r\nnext")
    (tmp_path / "f.txt").write_bytes(b"")
    with open(tmp_path / "g.txt", "wb") as file:
        file.truncate(1 << 35)  # which takes no room on the disk
    found = read(tmp_path)
    assert found[0] == "größer" and found[4] == "line\u2028separator\r\nnext"
    assert found[1] == "is UTF-16, not UTF-8 text: save the file as UTF-8"
    assert all("not UTF-8 text" in found[i] for i in (2, 3, 5)) and len(found) == 6


def test_links_suffixes_and_what_is_left_out(tmp_path, caplog):
    books, more, inner = (tmp_path / name for name in ("books", "more", "books/inner"))
    for folder in (books, more, inner):
        folder.mkdir()
    (books / "a.txt").write_text("one")
    (books / "C.TXT").write_text("three")
    (books / "d.md").write_text("markdown")
    (more / "b.txt").write_text("two")
    (inner / "x.txt").write_text("four")
    os.symlink(more, books / "more")
    os.symlink(books, inner / "loop")
    os.symlink(inner / "x.txt", books / "inside.txt")
    os.symlink("/etc/passwd", books / "link.txt")
    os.symlink("/nowhere", books / "gone.txt")
    os.mkfifo(books / "pipe.txt")
    with caplog.at_level("INFO", logger="absl"):
        found = read(books)
    assert "1 files whose names do not end in .txt" in caplog.text
    assert "1 links to folders outside of it (set follow_links=True" in caplog.text
    errors = [text for text in found if " " in text]
    assert sorted(set(found) - set(errors)) == ["four", "one", "three"] and found.count("four") == 2
    assert sum("set follow_links=True" in error for error in errors) == 2  # also where the link leads nowhere
    assert any("it is a pipe" in error for error in errors) and len(errors) == 3
    (books / "link.txt").unlink()
    found = read(books, follow_links=True)
    assert {"one", "two", "three", "four"} < set(found)
    assert sum("No such file" in text for text in found) == 1
    assert read(books / "inside.txt") == ["four"]


def test_a_book_that_is_away_is_no_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01,))
    (tmp_path / "a.txt").write_text("one")
    source = open_source(SourceConfig(kind="text", path=str(tmp_path)))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    with pytest.raises(storage.StorageError, match="a.txt is not there any more"):
        source[0]
    (tmp_path / "a.txt").write_text("on")
    assert "breaks off" in source[0]["error"]


def test_a_record_holds_at_least_a_character(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(UsageError, match="record_bytes=0"):
        read(tmp_path, record_bytes=0)
