"""The readers of public forms: real-form records become the packed batches of hand-built documents, bit for bit."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import public_forms
import pytest

from transfusion.data import readers
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.packing import Lane
from transfusion.data.pipeline import Pipeline, epoch_batches
from transfusion.data.sources import open_source
from transfusion.sequence import Run, SequenceSpec, Stream, text
from transfusion.sequence.layouts import bagel
from transfusion.sequence.rows import assemble, expand

IMAGE = dict(attention="block", embed="linear", channels=1, patch=2, grid=(4, 4), budget=64)
DRAWN = dict(head="linear", objective="continuous")
TRANSFUSION = SequenceSpec(
    {"text": Stream(budget=512, vocabulary=text.VOCABULARY), "image": Stream(**IMAGE, **DRAWN)},
    {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)},
    text.BOS,
    text.EOS,
)
BAGEL = SequenceSpec(
    {
        "text": Stream(budget=512, vocabulary=text.VOCABULARY), "noised": Stream(**IMAGE, **DRAWN),
        "clean": Stream(**IMAGE), "semantic": Stream(**IMAGE),
    },
    bagel(), text.BOS, text.EOS,
)  # fmt: skip
PLAIN = DataConfig(caption_first=1.0, drop_caption=0.0)


def packed(documents, spec):
    """The batches of hand-built documents, by the packing of the library."""
    expanded = [expand(document, spec) for document in documents]
    lane = Lane(lambda i: expanded[i] if i < len(expanded) else end(), spec.budgets, split=PLAIN.split_text)
    rows = []
    try:
        while True:
            rows.append(lane.next_row())
    except StopIteration:
        while (row := lane.drain()) is not None:
            rows.append(row)
    return [assemble([[piece.item for piece in row] for row in rows[i : i + 1]], spec) for i in range(len(rows))]


def end():
    raise StopIteration


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in one.keys() | other.keys():
            for field, value in vars(one[name]).items():
                np.testing.assert_array_equal(value, vars(other[name])[field], err_msg=f"{name}.{field}")


@pytest.mark.parametrize("spec", [TRANSFUSION, BAGEL], ids=["transfusion", "bagel"])
@pytest.mark.parametrize("name", public_forms.FORMS)
def test_twenty_records_are_the_batches_of_documents_by_hand(tmp_path, name, spec):
    form = public_forms.write(name, tmp_path)
    source = open_source(SourceConfig(kind="records", **form.fields))
    assert len(source) == public_forms.COUNT
    assert not [record["error"] for record in source if "error" in record]
    assert_same(list(epoch_batches(source, PLAIN, spec, 1)), packed(form.documents, spec))


def test_every_reader_is_tested_and_short(tmp_path):
    used = {public_forms.write(name, tmp_path / name).fields["reader"] for name in public_forms.FORMS}
    assert used == readers.READERS.keys() - {""}
    folder = pathlib.Path(readers.__file__).parent
    assert not [path.name for path in folder.glob("[!_]*.py") if len(path.read_text().splitlines()) > 60]


BROKEN = {
    "obelics": ({"texts": ["a"], "images": []}, "lists of one length"),
    "llava": ({"image": "a.png", "conversations": [{"from": "bot", "value": "x"}]}, "'bot' is none of human"),
    "omnigen": ({"instruction": "<img><|image_2|></img>", "input_images": ["a"], "output_image": "b"}, r"images \[2\]"),
    "tuna": ({"image": "a.png"}, "no edit"),
    "bagel": ({"image_list": ["a", "b"], "instruction_list": []}, "2 images and 0 instructions"),
    "datasets": ({"text": "a"}, "no picture"),
    "coco": ({"file_name": "a.png"}, "no captions"),
    "vqav2": ({"image": "a.png", "question": "?"}, "multiple_choice_answer"),
    "geneval": ({"tag": "single_object"}, "no prompt"),
    "mint1t": ({"texts": [None], "images": ["https://a.org/b.png"]}, "address"),
}


@pytest.mark.parametrize("reader", BROKEN)
def test_a_wrong_record_is_one_line_with_file_and_number(tmp_path, reader):
    row, wrong = BROKEN[reader]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n[]\n")
    records = list(open_source(SourceConfig(kind="records", path=str(path), reader=reader)))
    assert [record["id"] for record in records] == [f"{path}:1", f"{path}:2"]
    assert re.search(wrong, records[0]["error"]) and "\n" not in records[0]["error"]
    assert "no JSON object" in records[1]["error"]


def test_a_public_form_without_its_reader_is_refused(tmp_path):
    form = public_forms.write("llava", tmp_path)
    records = list(open_source(SourceConfig(kind="records", path=form.fields["path"])))
    assert {record["error"] for record in records} == {
        "it has 'conversations' and no segments: set reader='llava' if it is of that form"
    }


def test_a_mixture_of_all_forms_fills_rows_and_goes_on_exactly(tmp_path):
    forms = {name: public_forms.write(name, tmp_path / name) for name in public_forms.FORMS}
    sources = {name: SourceConfig(kind="records", **form.fields) for name, form in forms.items()}
    (tmp_path / "prose.txt").write_text("".join(f"Line {i} of a text that is read.\n" for i in range(600)))
    sources["prose"] = SourceConfig(kind="text", path=str(tmp_path / "prose.txt"), weight=2.0, record_bytes=256)
    streams = {"text": dataclasses.replace(TRANSFUSION.streams["text"], budget=576)}
    spec = dataclasses.replace(TRANSFUSION, streams=dict(TRANSFUSION.streams) | streams)
    config = DataConfig(sources=sources, prefetch=0, flip=0.5, drop_caption=0.2)
    with Pipeline(config, spec, 4) as pipeline:
        for _ in range(30):
            next(pipeline)
        state, stats = json.loads(json.dumps(pipeline.state())), pipeline.stats()
        following = [next(pipeline) for _ in range(3)]
    assert stats["bad"] == 0 and min(stats["efficiency"].values()) > 0.95
    with Pipeline(config, spec, 4) as pipeline:
        pipeline.restore(state)
        assert_same([next(pipeline) for _ in range(3)], following)
