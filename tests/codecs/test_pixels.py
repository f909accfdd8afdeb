import numpy as np
import pytest

from transfusion.codecs import pixels
from transfusion.errors import UsageError
from transfusion.model.blocks import check_size


def test_every_byte_survives_the_round_trip():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    latent = pixels.to_float(image)
    assert latent.dtype == np.float32 and latent.min() == -1 and latent.max() == 1
    np.testing.assert_array_equal(pixels.to_uint8(latent), image)


def test_to_uint8_clips_and_survives_nan():
    values = np.array([-3, np.nan, 3, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(pixels.to_uint8(values), [0, 0, 255, 255, 0])


def test_floats_are_refused_as_input_images():
    with pytest.raises(UsageError, match="uint8"):
        pixels.to_float(np.zeros((2, 2, 3), np.float32))


def test_codec_is_the_identity_and_checks_channels():
    codec = pixels.PixelCodec(channels=1)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 6, 1)).astype(np.float32)
    np.testing.assert_array_equal(codec.decode(codec.encode(images, None)), images)
    assert codec.latent_shape(4, 6) == (4, 6, 1) and codec.down == 1
    with pytest.raises(UsageError, match="1 channels"):
        codec.encode(np.zeros((2, 4, 6, 3), np.float32))


def test_a_size_that_does_not_divide_names_one_that_does():
    check_size(24, 32, 8)
    with pytest.raises(UsageError, match="24x32") as error:
        check_size(25, 30, 8)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError):
        check_size(0, 8, 8)
