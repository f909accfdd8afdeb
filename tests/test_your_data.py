"""The page about your own data: each form that it shows is copied from it, and read."""

import dataclasses
import pathlib
import re
import subprocess
import textwrap

import jax
import numpy as np
import public_forms
import pytest

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.documents import choose_document
from transfusion.data.examples import make_example
from transfusion.data.packing import Bad
from transfusion.data.pipeline import epoch_batches
from transfusion.data.readers import READERS
from transfusion.data.record_writer import write_records
from transfusion.data.sources import open_source
from transfusion.evaluation.show import plain_experiment

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "your_own_data.md").read_text()
BLOCKS = [
    (suffix, name, textwrap.dedent(block))
    for suffix, name, block in re.findall(r"^ *```(\w+) ?([\w.]*)\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
]
SHOWN = {name.partition(".")[0]: (suffix, block) for suffix, name, block in BLOCKS if name}
OTHER_KINDS = {"captions": "folder", "webdataset": "webdataset"}
ROWS = {"tuna": 2, "imagefolder": 2, "captions": 2}  # records that a block shows, where there are several


@pytest.fixture
def folder(tmp_path, monkeypatch):
    public_forms.pictures(tmp_path, lambda i: f"{i}.png", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def usable(path, count, reader="", kind="records"):
    """Checks that a file holds so many records, that each becomes tokens unless it holds codes, and that when they are
    prepared, they are packed to the same rows."""
    experiment = plain_experiment()
    config = SourceConfig(kind=kind, path=str(path), reader=reader, resolution=32, channels=3)
    source = open_source(config)
    assert len(source) == count
    for record in source:
        assert "error" not in record, record["error"]
        if any(segment.encoded for segment in record.get("segments", ())):
            continue
        choice = choose_document(record, DataConfig(drop_caption=0.0), (0, 0))
        example = make_example(record, choice, experiment.spec)
        assert not isinstance(example, Bad), example
    batches = packed(source)
    assert (batches[0]["text"].document > 0).any()
    if kind == "records":
        prepared = f"prepared/{len(list(pathlib.Path().glob('prepared/*')))}"
        assert write_records(config, prepared, 10**6, pytest.fail) == count
        again = open_source(dataclasses.replace(config, path=prepared, reader=""))
        jax.tree.map(np.testing.assert_array_equal, packed(again), batches)


def packed(source):
    config = DataConfig(drop_caption=0.0, max_bad_share=1.0)
    return list(epoch_batches(source, config, plain_experiment().spec, 1))


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
    elif suffix == "bash":
        subprocess.run(block, shell=True, check=True)
        path = folder / f"{reader}.tar"
    else:
        path.write_text(block)
    path = folder if reader in ("imagefolder", "captions") else path
    kind = OTHER_KINDS.get(reader, "records")
    usable(path, ROWS.get(reader, 1), reader if kind == "records" else "", kind)


def test_every_reader_is_on_the_page():
    assert not [name for name in READERS if name and f'`reader="{name}"`' not in PAGE]
    assert SHOWN.keys() | {""} == READERS.keys() | OTHER_KINDS.keys()
