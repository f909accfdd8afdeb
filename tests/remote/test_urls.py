"""Sources behind URLs: every kind is read as from a folder, copied once, and what cannot be read is one line."""

import functools
import http.server
import io
import json
import pathlib
import tarfile
import threading

import fsspec
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from fake_hub import used_hub
from PIL import Image

from transfusion import storage
from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.remote import urls
from transfusion.storage import StorageError


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def tar(values) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for value in values:
            for suffix, data in (("png", png(value)), ("txt", f"grey {value}".encode())):
                about = tarfile.TarInfo(f"{value}.{suffix}")
                about.size = len(data)
                file.addfile(about, io.BytesIO(data))
    return out.getvalue()


def files() -> dict[str, bytes]:
    rows = [{"file_name": f"pictures/{i}.png", "caption": f"grey {i}"} for i in range(3)]
    short = [{"image": f"pictures/{i}.png", "caption": f"grey {i}"} for i in range(3)]
    lines = ["\n".join(map(json.dumps, some)).encode() + b"\n" for some in (rows, short)]
    found = {"folder/captions.jsonl": lines[0], "records/rows.jsonl": lines[1]}
    found |= {f"{name}/pictures/{i}.png": png(i) for name in ("folder", "records") for i in range(3)}
    table = arrow.Table.from_pylist(
        [{"segments": [{"image": png(i), "text": None}, {"image": None, "text": f"grey {i}"}]} for i in range(3)]
    )
    arrow.parquet.write_table(table, out := io.BytesIO())
    return found | {
        "parquet/a.parquet": out.getvalue(),
        "tars/a-0.tar": tar([0, 1]),
        "tars/a-1.tar": tar([2]),
        "text/deep/a.txt": b"one\n\ntwo",
    }


SOURCES = {
    "folder": SourceConfig(kind="folder", path="{}/folder"),
    "records": SourceConfig(kind="records", path="{}/records"),
    "record file": SourceConfig(kind="records", path="{}/records/rows.jsonl"),
    "parquet": SourceConfig(kind="records", path="{}/parquet"),
    "tars": SourceConfig(kind="webdataset", path="{}/tars"),
    "pattern": SourceConfig(kind="webdataset", path="{}/tars/a-{0..1}.tar"),
    "text": SourceConfig(kind="text", path="{}/text", record_bytes=5),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(urls.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "PAUSES", (0.0,))
    urls._mirrors.clear()
    return tmp_path / "cache"


@pytest.fixture
def memory(cache):
    """fsspec's file system in memory, with the files of all sources."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for name, data in files().items():
        system.pipe(f"/data/{name}", data)
    return "memory://data"


@pytest.fixture
def server(cache, tmp_path):
    """A web server that lists its folders."""
    for name, data in files().items():
        (tmp_path / "www" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "www" / name).write_bytes(data)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        asked = []

        def log_message(self, text, *values):
            self.asked.append(self.path)

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        found.asked = Quiet.asked
        yield found
        found.shutdown()


def read(source: SourceConfig, root: str) -> list:
    opened = open_source(SourceConfig(**vars(source) | {"path": source.path.replace("{}", root)}))
    records = [dict(opened[i]) for i in range(len(opened))]
    assert not [record["error"] for record in records if "error" in record]
    return [_seen(record) for record in records]


def _seen(record) -> tuple[str, int]:
    """The text of a record, and the largest value of its image."""
    if "segments" in record:
        image, text = (segment.value for segment in record["segments"])
        return text, image.max()
    return record.get("caption") or record.get("text"), np.asarray(record.get("image", 0)).max()


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_is_read_from_a_url(name, memory):
    wanted = [("one", 0), ("two", 0)] if name == "text" else [(f"grey {i}", i) for i in range(3)]
    assert read(SOURCES[name], memory) == wanted


def test_a_tfds_data_set_and_the_data_folder_of_a_config(data_dir, memory):
    for path in pathlib.Path(data_dir).rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe(f"/tfds/{path.relative_to(data_dir)}", path.read_bytes())
    sources = SourceConfig(name="digits", path="memory://tfds", split="test"), SourceConfig(name="digits", split="test")
    opened = [open_source(source, "memory://tfds") for source in sources]
    assert [len(one) for one in opened] == [297, 297] and opened[0][5]["caption"] == opened[1][5]["caption"]


def test_the_files_that_records_name_are_fetched_when_they_are_read_and_only_once(memory, cache):
    opened = open_source(SourceConfig(kind="folder", path=f"{memory}/folder"))
    assert len(opened) == 3 and not list(cache.rglob("*.png"))
    assert opened[1]["image"].max() == 1 and [path.name for path in cache.rglob("*.png")] == ["1.png"]
    fsspec.filesystem("memory").rm("/data/folder/pictures/1.png")
    assert opened[1]["image"].max() == 1  # from the copy
    assert "error" not in opened[2]
    fsspec.filesystem("memory").rm("/data/folder/pictures/0.png")
    assert "No such file" in opened[0]["error"]


def test_a_file_that_changed_is_fetched_again(memory):
    assert len(read(SOURCES["record file"], memory)) == 3
    row = json.dumps({"image": "pictures/2.png", "caption": "grey 2"})
    fsspec.filesystem("memory").pipe("/data/records/rows.jsonl", row.encode() + b"\n")
    assert read(SOURCES["record file"], memory) == [("grey 2", 2)]


def test_a_web_server(server):
    pytest.importorskip("aiohttp")
    root = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("folder", "record file", "pattern"):
        assert len(read(SOURCES[name], root)) == 3
    fetched = [path for path in server.asked if path.endswith(".tar")]
    read(SOURCES["pattern"], root)
    assert len([p for p in server.asked if p.endswith(".tar")]) - len(fetched) == 2  # asked whether they changed


def test_a_data_set_of_a_hub(cache, monkeypatch, tmp_path):
    with used_hub(monkeypatch, tmp_path) as hub:
        hub.models["datasets/me/things"] = files()
        for name in ("folder", "parquet", "tars"):
            assert read(SOURCES[name], "hf://datasets/me/things") == [(f"grey {i}", i) for i in range(3)]


def test_what_cannot_be_read_is_one_line(memory, cache, monkeypatch):
    for path, message in (
        ("memory://data/none.tar", "memory://data/none.tar: there is no none.tar"),
        ("memory://data/tars/a-{0..2}.tar", "there is no a-2.tar"),
        ("memory://data/empty", "there is none of .*.tar"),
        ("ftps://data/x.tar", "'ftps' is none of gs, s3, hf, https"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(SourceConfig(kind="webdataset", path=path))
    monkeypatch.setitem(urls.SCHEMES, "memory", ("no_such_driver", "s3"))
    urls._mirrors.clear()
    with pytest.raises(UsageError, match=r"no_such_driver is not installed: pip install 'transfusion\[s3\]'"):
        open_source(SourceConfig(kind="webdataset", path="memory://data/tars"))
    with pytest.raises(UsageError, match="sources of kind 'mine' are read from local paths only"):
        urls_of_other_kinds()


def urls_of_other_kinds():
    from transfusion.data.copies import copied

    copied(SourceConfig(kind="mine", path="memory://data/x"), "data")


def test_a_driver_that_fails_and_a_name_that_leads_out(memory, monkeypatch):
    mirror = urls.mirror_of(f"{memory}/folder")
    with pytest.raises(ValueError, match="lies outside the folder"):
        mirror.fetch("../text/deep/a.txt")
    system = type(fsspec.filesystem("memory"))

    def broken(*_, **__):
        raise RuntimeError("connection\nlost")

    monkeypatch.setattr(system, "open", broken)
    with pytest.raises(StorageError, match="cannot read .*captions.jsonl: .*RuntimeError: connection lost"):
        mirror.fetch("captions.jsonl")
    assert not list(pathlib.Path(mirror.folder).glob("*.part"))
