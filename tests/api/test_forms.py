"""What media must be for a codec and a model: sizes, channels, frames and samples."""

import dataclasses

import numpy as np
import pytest
import tiny

from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.latents import Codec, Codecs, Form, check_resolutions, forms_of
from transfusion.sequence import Run

CODEC = Codec(np.asarray, np.asarray, down=4, rate=8000, time_down=2, channels=3)


def test_a_codec_says_what_a_medium_is_whose_latents_have_a_grid():
    assert CODEC.form([(5,)]) == Form(length=20, rate=8000)
    assert CODEC.form([(2, 3), (3, 2)]) == Form(((8, 12), (12, 8)), 4, 3)
    assert CODEC.form([(6, 2, 2)]) == Form(((8, 8),), 4, 3, length=12)
    assert CODEC.form([(0, 0)]).sizes == ()  # any size


def test_latents_say_the_size_of_what_a_tower_reads_too():
    image = tiny.image_stream()
    seen = dataclasses.replace(
        image, embed="vit", head="none", objective="none", source="pixels", time="none", grid=(24, 24), budget=144
    )
    layout = {"image": (Run("seen"), Run("image"))}
    spec = tiny.spec({"text": tiny.text_stream(), "image": image, "seen": seen}, layout)
    form = forms_of(spec, Codecs(CODEC))["image"]
    assert form.sizes == ((image.grid[0] * 4, image.grid[1] * 4),)
    assert form.multiple == image.patch * 4 and form.channels == 3


def test_images_that_no_stream_holds_are_refused():
    spec = tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream()}, {"image": (Run("image"),)})
    side = spec.streams["image"].grid[0] * 4
    check_resolutions({"good": SourceConfig("x", resolution=side), "unsized": SourceConfig("x")}, spec, Codecs(CODEC))
    with pytest.raises(UsageError, match=rf"sources\.small\.resolution: 4 does not fit .* {side}x{side}"):
        check_resolutions({"small": SourceConfig("x", resolution=4)}, spec, Codecs(CODEC))
