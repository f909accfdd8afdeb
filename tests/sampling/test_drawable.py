"""Which kind of segment a layout table lets a model draw, and what of a table the decoder refuses."""

import dataclasses

import pytest
import tiny

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.sampling.drawable import chosen, drawables_of
from transfusion.sequence import Run

SPEC = tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream(), "sound": tiny.image_stream()})


def drawn(layout):
    return drawables_of(dataclasses.replace(SPEC, layout=layout))


def test_the_run_with_an_opener_is_drawn():
    (found,) = drawn(layouts.transfusion())
    assert (found.kind, found.run.stream, found.spelled) == ("image", "image", False)
    assert found.opener_is_text  # it lies outside of the image's span
    assert drawn({"text": (Run("text"),)}) == ()
    assert drawn({"image": (Run("image"),)}) == ()  # nothing would tell the model to begin


def test_several_kinds_are_told_apart_by_their_openers():
    table = drawn(layouts.transfusion() | {"sound": (Run("sound", opener=3),)})
    assert [one.kind for one in table] == ["image", "sound"]
    assert chosen(table, "sound").opener == 3
    with pytest.raises(UsageError, match="draws image, sound: say which, as in kind='image'"):
        chosen(table, "")
    with pytest.raises(UsageError, match="draws no sounds: it draws image, sound .did you mean 'sound'"):
        chosen(table, "sounds")


def test_what_cannot_be_drawn_is_refused():
    table = layouts.transfusion()
    alike = table | {"sound": (Run("sound", opener=table["image"][0].opener),)}
    with pytest.raises(UsageError, match="image and sound have the same opener .*an opener of its own"):
        drawn(alike)
    with pytest.raises(UsageError, match="image/target, has no run that is drawn"):
        drawn(layouts.transfusion() | {"image/target": (Run("text"),)})
