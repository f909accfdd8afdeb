"""The page about your own data: each form that it shows is copied from it, and read."""

import pathlib
import re

import public_forms
import pytest

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.documents import choose_document
from transfusion.data.examples import make_example
from transfusion.data.packing import Bad
from transfusion.data.readers import READERS
from transfusion.data.sources import open_source
from transfusion.evaluation.show import plain_experiment

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "your_own_data.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SHOWN = {name.partition(".")[0]: (suffix, block) for suffix, name, block in BLOCKS if name}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    public_forms.pictures(tmp_path, lambda i: f"{i}.png", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def usable(path, count, reader=""):
    """Checks that a file holds so many records, and that each becomes tokens unless it holds codes."""
    experiment = plain_experiment()
    source = open_source(SourceConfig(kind="records", path=str(path), reader=reader, resolution=32, channels=3))
    assert len(source) == count
    for record in source:
        assert "error" not in record, record["error"]
        if any(segment.encoded for segment in record.get("segments", ())):
            continue
        choice = choose_document(record, DataConfig(drop_caption=0.0), (0, 0))
        example = make_example(record, choice, experiment.spec)
        assert not isinstance(example, Bad), example


def test_the_record_form(folder):
    (block,) = [block for suffix, name, block in BLOCKS if suffix == "jsonl" and not name]
    (folder / "records.jsonl").write_text(block)
    usable(folder / "records.jsonl", 6)


def test_the_storages(folder):
    (block,) = [block for suffix, name, block in BLOCKS if suffix == "python" and not name and "tarfile" in block]
    exec(compile(block, "page", "exec"), {})
    usable("records.parquet", 1)
    usable("records.tar", 1)


@pytest.mark.parametrize("reader", SHOWN)
def test_a_public_form(folder, reader):
    suffix, block = SHOWN[reader]
    path = folder / f"{'metadata' if reader == 'imagefolder' else reader}.{suffix}"
    if suffix == "python":
        exec(compile(block, "page", "exec"), {})
        path = folder / f"{reader}.parquet"
    else:
        path.write_text(block)
    rows = {"tuna": 2, "imagefolder": 2}
    usable(folder if reader == "imagefolder" else path, rows.get(reader, 1), reader)


def test_every_reader_is_on_the_page():
    assert not [name for name in READERS if name and f'`reader="{name}"`' not in PAGE]
    assert SHOWN.keys() | {"", "mint1t", "datasets"} == READERS.keys()
