"""Lists of prompts: what is done is not done again, and no sample depends on those that were made beside it."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transfusion import sample
from transfusion.adapters.batches import RESULTS, Batches, work_through
from transfusion.adapters.lines import Line, check_names, read_lines
from transfusion.api import load_run
from transfusion.errors import UsageError

SETTINGS = {"steps": 2, "max_tokens": 4, "top_k": 3}


def write(path: pathlib.Path, *rows) -> pathlib.Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


@pytest.fixture
def prompts(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return write(
        tmp_path / "prompts.jsonl",
        {"id": "seven", "prompt": "a handwritten seven", "number": 3},
        "",
        {"id": "../../up", "prompt": "a handwritten two", "seed": 9},
        {"id": "what", "image": "a.png"},
        {"prompt": "a handwritten six"},
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix == ".png"}


def rows(folder: pathlib.Path) -> list[dict]:
    return sorted(map(json.loads, (folder / RESULTS).read_text().splitlines()), key=lambda r: (r["id"], r["sample"]))


def test_a_stopped_list_goes_on_and_gives_the_same_to_the_last_bit(run, prompts, tmp_path):
    lines = read_lines(prompts)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert work_through(Batches(run, lines, whole, SETTINGS, rows=2), lambda result: None) == (6, 0)
    drawn = contents(whole)
    assert len(drawn) == 5 and all(Image.open(whole / name).size == (8, 8) for name in drawn)
    assert len(set(drawn.values())) == 5, "every sample has noise of its own"
    assert {"seven-0.png", "seven-2.png", "5.png"} < drawn.keys()

    # In the other order, one line at first, torn in the middle of a row, and with a file that went missing.
    assert work_through(Batches(run, lines[:1], parts, SETTINGS, rows=2), lambda result: None) == (3, 0)
    with (parts / RESULTS).open("a") as file:
        file.write('{"id": "what", "samp')
    (parts / "seven-1.png").unlink()
    kept = (parts / "seven-0.png").stat().st_mtime_ns
    again = Batches(run, lines[::-1], parts, SETTINGS, rows=2)
    assert work_through(again, lambda result: None) == (4, 2)
    assert contents(parts) == drawn and (parts / "seven-0.png").stat().st_mtime_ns == kept
    good = [json.loads(line) for line in (parts / RESULTS).read_text().splitlines() if line.endswith("}")]
    assert {(row["id"], row["sample"]): row for row in good} == {(r["id"], r["sample"]): r for r in rows(whole)}
    assert work_through(again, lambda result: None) == (0, 6)


def test_captions_and_texts_are_those_of_the_run(run, prompts, tmp_path):
    path = write(tmp_path / "texts.jsonl", {"image": "a.png"}, {"id": "tale", "text": "a hand", "number": 2})
    folder = tmp_path / "out"
    texts = Batches(run, read_lines(path), folder, SETTINGS | {"max_images": 0}, rows=2)
    work_through(texts, lambda result: None)
    caption, *tales = rows(folder)
    assert [caption["text"]] * 2 == run.caption([tmp_path / "a.png"] * 2, **SETTINGS)
    assert [row["id"] for row in tales] == ["tale"] * 2 and all(not row["files"] for row in tales)


def test_results_of_other_settings_are_not_mixed(run, prompts, tmp_path):
    lines = read_lines(prompts)[:1]
    Batches(run, lines, tmp_path / "out", {"steps": 2}).open()
    with pytest.raises(UsageError, match="holds results with settings .*give another folder"):
        next(Batches(run, lines, tmp_path / "out", {"steps": 3}).work())
    moved = dataclasses.replace(run, workdir="elsewhere")
    assert Batches(moved, lines, tmp_path / "out", {"steps": 2}).open() == {}
    other = dataclasses.replace(run, params=jax.tree.map(lambda array: array + 1, run.params))
    with pytest.raises(UsageError, match="holds results with weights .*give another folder"):
        next(Batches(other, lines, tmp_path / "out", {"steps": 2}).work())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2: a line is an object"),
        ({"id": "a"}, "line 2: a line has one of .*this one has none"),
        ({"prompt": "a", "text": "b"}, "line 2: .*this one has prompt and text"),
        ({"promt": "a"}, "line 2: no field 'promt'.*did you mean 'prompt'"),
        ({"prompt": "a", "number": 0}, "line 2: number=0"),
        ({"prompt": "a", "number": "3"}, "line 2: number='3' must be a whole number"),
        ({"prompt": "a", "seed": -1}, "line 2: seed=-1"),
        ({"prompt": "a", "id": True}, "line 2: id=True"),
        ({"prompt": []}, "line 2: prompt must be a text, or a list"),
        ({"prompt": ["a", {"picture": "b"}]}, "line 2: a part of prompt"),
        ({"image": "none.png"}, "line 2: there is no file .*none.png"),
        ({"image": "https://x/y.png"}, "line 2: cannot read"),
        ({"image": "a.png", "label": 3}, "line 2: label is of what a prompt draws"),
        ({"prompt": "b", "id": "1"}, "line 2: the id '1' is that of .*line 1, too"),
        ('{"prompt": "\\ud83d"}', "line 2: .*not Unicode text"),
    ],
)
def test_a_bad_line_is_told_by_its_number_before_anything_is_made(row, message, prompts):
    path = write(prompts.parent / "bad.jsonl", {"prompt": "good"}, row)
    with pytest.raises(UsageError, match=message) as raised:
        read_lines(path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_line_that_does_not_fit_the_model_is_named(run, prompts, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for row, message in (({"image": "broken.png"}, "cannot read"), ({"prompt": "a", "label": 3}, "no classes")):
        path = write(tmp_path / "misfit.jsonl", {"id": "x", **row})
        with pytest.raises(UsageError, match=f"misfit.jsonl line 1: .*{message}"):
            list(Batches(run, read_lines(path), tmp_path / "out").work())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=4, unique=True))
def test_no_id_leaves_the_folder_or_meets_another(ids):
    lines = [Line(f"line {n}", name, "draw", ("a",), number=1 + n % 2) for n, name in enumerate(ids)]
    for line in lines:
        for number in range(line.number):
            stem = line.stem(number)
            assert stem.isascii() and not set(stem) & set("/\\:\0") and stem.strip(".") == stem and len(stem) < 120
            assert 0 <= line.noise(number) < 2**31
    with pytest.raises(UsageError) if len({line.stem(0).casefold() for line in lines}) < len(lines) else _nothing():
        check_names(lines)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_the_program_prints_a_row_for_each_result(run, prompts, tmp_path, monkeypatch, capsys):
    flags = dict(workdir="w", prompts=str(prompts), output=str(tmp_path / "out"), num=1, seed=0, batch=2, json=True)
    monkeypatch.setattr(sample, "FLAGS", SimpleNamespace(**flags))
    monkeypatch.setattr(sample, "load_run", lambda workdir: run)
    sample.work_through(SETTINGS)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(printed, key=lambda row: (row["id"], row["sample"])) == rows(tmp_path / "out")
    sample.work_through(SETTINGS)
    assert capsys.readouterr().out == ""
