"""Which kind of segment a layout table lets a model draw, and what of a table the decoder refuses."""

import dataclasses

import pytest
import tiny

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.sampling.drawable import drawable_of
from transfusion.sequence import Run

SPEC = tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream(), "sound": tiny.image_stream()})


def drawn(layout):
    return drawable_of(dataclasses.replace(SPEC, layout=layout))


def test_the_run_with_an_opener_is_drawn():
    found = drawn(layouts.transfusion())
    assert (found.kind, found.run.stream, found.spelled) == ("image", "image", False)
    assert found.opener_is_text  # it lies outside of the image's span
    assert drawn({"text": (Run("text"),)}) is None
    assert drawn({"image": (Run("image"),)}) is None  # nothing would tell the model to begin


def test_what_cannot_be_drawn_is_refused():
    several = layouts.transfusion() | {"sound": (Run("sound", opener=3),)}
    with pytest.raises(UsageError, match="draws one kind of segment, but the layout has image, sound"):
        drawn(several)
    with pytest.raises(UsageError, match="image/target, has no run that is drawn"):
        drawn(layouts.transfusion() | {"image/target": (Run("text"),)})
