import numpy as np
import pytest

from transfusion.codecs.mel import MelCodec, MelConfig
from transfusion.errors import UsageError

SECOND = np.arange(8000 // 128 * 128) / 8000


def tones(*frequencies):
    return sum(0.2 * np.sin(2 * np.pi * f * SECOND) for f in frequencies).astype(np.float32)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(window=256, hop=64, bands=40)])
def test_a_round_trip_keeps_length_and_spectrum(config):
    codec, sound = MelCodec(config), tones(440, 1210, 2500)
    latents = codec.encode(sound)
    assert latents.shape == (len(sound) // config.hop, config.bands) and latents.dtype == np.float32
    back = codec.decode(latents)
    assert back.shape == sound.shape and back.dtype == np.float32
    before, after = (np.abs(codec.transform(x)).ravel() for x in (sound, back))
    assert np.corrcoef(before, after)[0, 1] > 0.85
    assert np.corrcoef(latents.ravel(), codec.encode(back).ravel())[0, 1] > 0.95
    np.testing.assert_allclose(np.std(back), np.std(sound), rtol=0.15)


def test_the_loudest_band_is_that_of_the_tone():
    codec = MelCodec()
    centres = np.fft.rfftfreq(512, 1 / 8000) @ codec.bands
    for frequency in (300, 1000, 3000):
        loudest = centres[codec.encode(tones(frequency))[30].argmax()]
        assert abs(loudest - frequency) < 0.06 * frequency + 16


def test_silence_int16_and_several_at_once():
    codec = MelCodec(MelConfig(iterations=2))
    silent = codec.encode(np.zeros(1280, np.int16))
    assert np.ptp(silent) == 0 and not codec.decode(silent).any()
    sound = tones(440)[:1280]
    as_int = (sound * 32768).astype(np.int16)
    np.testing.assert_allclose(codec.encode(as_int), codec.encode(sound), atol=0.5)
    both = codec.decode(np.stack([silent, codec.encode(sound)])[None])
    assert both.shape == (1, 2, 1280) and not both[0, 0].any() and both[0, 1].std() > 0.05
    assert np.abs(codec.decode(np.full((10, 64), 50.0))).max() <= 1  # nonsense is clipped, not an overflow


def test_what_does_not_fit_is_told():
    with pytest.raises(UsageError, match="a multiple of 128, not"):
        MelCodec().encode(np.zeros(100, np.int16))
    with pytest.raises(UsageError, match="int16, or float"):
        MelCodec().encode(np.zeros(128, np.int32))
    with pytest.raises(UsageError, match="at most half of window"):
        MelConfig(window=128, hop=128)
