"""A stream with classes is trained on the classes of the records, and on none where a caption is left out."""

import numpy as np
import pytest
import tiny

from transfusion.data import documents
from transfusion.data.config import DataConfig
from transfusion.data.examples import make_example
from transfusion.data.packing import Bad

CLASSES = 3


@pytest.fixture
def spec():
    image = tiny.image_stream(time="adaln", head="adaln", labels=CLASSES)
    return tiny.spec({"text": tiny.text_stream(budget=48, vocabulary=300), "image": image})


def record(label: int, **fields) -> dict:
    return {"id": "a.png", "image": np.zeros((4, 4, 1), np.uint8), "label": label} | fields


def label_of(spec, record: dict, index: int, **config) -> int:
    config = DataConfig(**{"caption_first": 1.0} | config)
    example = make_example(record, documents.choose_document(record, config, (0, index)), spec)
    assert not isinstance(example, Bad), example
    return int(example.pieces["image"]["label"][0])


@pytest.mark.parametrize("caption", [{"caption": "a"}, {}], ids=["caption", "alone"])
def test_an_image_that_is_drawn_has_its_class(spec, caption):
    for label in range(CLASSES):
        assert label_of(spec, record(label, **caption), label, drop_caption=0.0) == label


@pytest.mark.parametrize("caption", [{"caption": "a"}, {}], ids=["caption", "alone"])
def test_the_class_is_left_out_as_often_as_a_caption(spec, caption):
    found = [label_of(spec, record(1, **caption), i, drop_caption=0.3) for i in range(400)]
    assert set(found) == {1, CLASSES}
    assert 0.2 < found.count(CLASSES) / len(found) < 0.4  # five deviations of 400 draws of 0.3 are 0.11


def test_an_image_that_is_read_has_none(spec):
    assert label_of(spec, record(1, caption="a"), 0, caption_first=0.0) == CLASSES


def test_a_class_that_the_stream_has_not_is_a_bad_record(spec):
    bad = record(CLASSES, caption="a")
    example = make_example(
        bad, documents.choose_document(bad, DataConfig(caption_first=1.0, drop_caption=0.0), (0, 0)), spec
    )
    assert isinstance(example, Bad) and example.name == "a.png" and "class 3" in example.error
