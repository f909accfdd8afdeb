"""A model with several codecs reads each kind of segment with the codec of its kind."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from transfusion import layouts
from transfusion.api import Trained
from transfusion.codecs import CodecConfig
from transfusion.codecs.mel import MelConfig
from transfusion.config import Experiment, from_json, to_json
from transfusion.data.documents import DocumentChoice, segment_value, to_document
from transfusion.data.segments import RawSegment
from transfusion.errors import UsageError
from transfusion.latents import check_resolutions, forms_of, open_codec, open_codecs
from transfusion.sequence import Stream, text
from transfusion.tasks import make_task

MEL = CodecConfig("mel", mel=MelConfig(bands=6, window=64, hop=32))
ITEM = {"embed": "linear", "head": "linear", "objective": "continuous", "attention": "block", "time": "added"}
SOUND = Stream(**ITEM, channels=6, patch=2, grid=(8,), budget=8)
IMAGE = Stream(**ITEM, channels=1, patch=2, grid=(4, 4), budget=8)


def experiment(**changes) -> Experiment:
    fields = {
        "model": tiny.model(),
        "streams": {"text": Stream(vocabulary=text.VOCABULARY, budget=64), "image": IMAGE, "sound": SOUND},
        "layout": layouts.transfusion() | layouts.transfusion(kind="sound"),
        "codecs": {"sound": MEL},
    }
    return Experiment(**fields | changes)


def media() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4, 4, 1), np.uint8), rng.integers(-9999, 9999, 256).astype(np.int16)


def test_each_segment_is_encoded_by_the_codec_of_its_kind():
    codecs, (image, sound) = open_codecs(experiment()), media()
    record = {"id": "a", "segments": (RawSegment("image", image), RawSegment("sound", sound))}
    first, second = to_document(record, DocumentChoice(), codecs.encode)
    np.testing.assert_array_equal(first.value, segment_value(open_codec(CodecConfig()).encode(image)))
    np.testing.assert_array_equal(second.value, segment_value(open_codec(MEL).encode(sound)))
    forms = forms_of(experiment().spec, codecs)
    assert forms["sound"].length == 256 and forms["sound"].rate == 8000 and forms["image"].sizes == ((4, 4),)


def test_media_of_prompts_are_read_by_the_codec_of_their_kind():
    one = experiment()
    task = make_task(one)
    run = Trained(one, task, task.template.init(jax.random.key(0)), open_codecs(one), 0)
    image, sound = media()
    for kind, medium in (("image", image), ("sound", sound)):
        (segment,) = run.segments(medium)
        assert segment.kind == kind
        np.testing.assert_array_equal(segment.value, segment_value(run.codecs[kind].encode(medium)))
    assert "pixels, mel" in repr(run)


def test_a_codec_for_each_kind_equals_one_codec_for_all():
    """The kinds may be named or not: what is read stays the same."""
    one = experiment(streams={"text": Stream(vocabulary=text.VOCABULARY, budget=64), "image": IMAGE},
                     layout=layouts.transfusion(), codecs={})  # fmt: skip
    named = dataclasses.replace(one, codec=MEL, codecs={"image": one.codec})
    image, _ = media()
    found = [open_codecs(e).encode("image", image) for e in (one, named)]
    np.testing.assert_array_equal(*found)
    assert forms_of(one.spec, open_codecs(one)) == forms_of(named.spec, open_codecs(named))
    check_resolutions({}, named.spec, open_codecs(named))


def test_a_config_keeps_its_codecs_and_an_older_one_has_none():
    one = experiment()
    assert from_json(to_json(one)) == one
    older = to_json(dataclasses.replace(one, codecs={})).replace('"codecs": {},', "")
    assert '"codecs"' not in older and from_json(older).codecs == {}


def test_a_kind_that_the_layout_does_not_have_is_refused():
    with pytest.raises(UsageError, match="codecs: kind of segment.*'sond'.*sound"):
        experiment(codecs={"sond": MEL})
