"""WAV files as programs write them: depths, floats, chunks, the lengths of pipes, and what is refused."""

import io
import struct
import tracemalloc
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.data import sounds
from transfusion.data.config import SourceConfig
from transfusion.data.media import MEDIA
from transfusion.data.sources import open_source

WAVE = np.array([0, 1, -1, 12345, -32768, 32767], np.int16)


def wav(samples, bits, encoding=1, channels=1, rate=8000, size=None, riff=None, before=b"", after=b"", **form):
    """The file of samples, bytes, in frames of `channels`; `size` and `riff` are the lengths that it states."""
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", encoding, channels, rate, rate * frame, form.get("frame", frame), bits)
    head += form.get("extension", b"")
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + before
    body += b"data" + struct.pack("<I", len(samples) if size is None else size) + samples + after
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def test_every_depth_gives_the_same_sound():
    wide = WAVE.astype(np.int64)
    packed = b"".join((int(v) << 8).to_bytes(3, "little", signed=True) for v in wide)
    forms = [(WAVE.tobytes(), 16, 1), (packed, 24, 1), ((wide << 16).astype("<i4").tobytes(), 32, 1)]
    for data, bits, encoding in forms:
        np.testing.assert_array_equal(sounds.decode(wav(data, bits, encoding))[0], WAVE)
        guid = struct.pack("<HHIH", 22, bits, 0, encoding) + bytes.fromhex("000000001000800000aa00389b71")
        np.testing.assert_array_equal(sounds.decode(wav(data, bits, 0xFFFE, extension=guid))[0], WAVE)
    for kind, bits in (("<f4", 32), ("<f8", 64)):
        found, rate = sounds.decode(wav((WAVE / 32767).astype(kind).tobytes(), bits, 3))
        np.testing.assert_array_equal(found, np.maximum(WAVE, -32767))
        assert rate == 8000
    loud = np.array([0.5, 2.0, -3.0, np.nan, np.inf], "<f4").tobytes()
    assert sounds.decode(wav(loud, 32, 3))[0].tolist() == [16384, 32767, -32767, 0, 32767]
    assert sounds.decode(wav(bytes([0, 128, 255]), 8))[0].tolist() == [-32768, 0, 32512]
    # The lowest of three bytes is rounded, and the largest value stays one.
    assert sounds.decode(wav(b"\xff\xff\x7f\x80\x00\x00", 24))[0].tolist() == [32767, 0]
    stereo = np.array([[100, 200], [-5, -10]], np.int16)
    assert sounds.decode(wav(stereo.tobytes(), 16, channels=2))[0].tolist() == [150, -8]


def test_what_python_writes_is_what_it_was():
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(WAVE.tobytes())
    found, rate = sounds.decode(out.getvalue())
    assert rate == 16000
    np.testing.assert_array_equal(found, WAVE.reshape(-1, 2).mean(1).round().astype(np.int16))


def test_lengths_of_pipes_and_chunks_around():
    data = WAVE.tobytes()
    for size, riff in ((0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (0, 36), (0x7FFFF000, 0x7FFFF024), (0x7FFFFFFF, 0)):
        np.testing.assert_array_equal(sounds.decode(wav(data, 16, size=size, riff=riff))[0], WAVE)
    assert len(sounds.decode(wav(data + b"x", 16, size=0xFFFFFFFF))[0]) == len(WAVE)  # killed within a sample
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0"
    np.testing.assert_array_equal(sounds.decode(wav(data, 16, before=odd, after=odd))[0], WAVE)
    with pytest.raises(ValueError, match="holds no samples"):
        sounds.decode(wav(b"", 16, after=odd))  # which does not become sound


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "does not begin as one"),
        (b"RIFX" + wav(WAVE.tobytes(), 16)[4:], "does not begin as one"),
        (wav(WAVE.tobytes(), 16)[:-3], "breaks off after 9 of 12 bytes"),
        (wav(WAVE.tobytes(), 16)[:40], "has no samples"),
        (wav(WAVE.tobytes(), 16)[:30], "format breaks off"),
        (wav(b"\0" * 12, 16, channels=0), "0 channels"),
        (wav(b"\0" * 12, 16, rate=0), "rate 0"),
        (wav(b"\0" * 12, 16, frame=4), "4 bytes a sample"),
        (wav(b"\0" * 12, 12), "of 12 bits"),
        (wav(b"\0" * 12, 8, 7), r"8 bits \(mu-law\): save it as PCM"),
        (wav(b"\0" * 12, 16, 0xFFFE), "encoding 65534"),
        (wav(b"\0" * 120, 16, size=0xFFFFFFFF), "over the limit of 50"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "before their format"),
    ],
)
def test_what_cannot_be_read_is_one_line(data, why):
    with pytest.raises(ValueError, match=why) as caught:
        sounds.decode(data, 50)
    assert "\n" not in str(caught.value)


def test_a_small_file_cannot_become_a_huge_sound(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(bytes(12_000), 16, rate=1))
    (tmp_path / "captions.csv").write_text("file_name,caption\na.wav,hum\n")
    source = open_source(SourceConfig(kind="folder", path=str(tmp_path), medium="sound", rate=24_000))
    tracemalloc.start()
    assert "6000 samples at 1 per second are 144000000 at 24000, over the limit" in source[0]["error"]
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    with pytest.raises(ValueError, match="the sound has no rate"):
        MEDIA["sound"].fit({"sound": WAVE}, SourceConfig(rate=8000))
    with pytest.raises(ValueError, match="cannot resample from 0"):
        MEDIA["sound"].fit({"sound": WAVE, "rate": 0}, SourceConfig(rate=8000))


BASES = [wav(WAVE.tobytes(), 16), wav(WAVE.tobytes(), 24), wav(bytes(16), 32, 3, channels=2)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    base=st.integers(0, 2),
    changes=st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=4)), max_size=4),
    end=st.integers(0, 80),
)
def test_any_bytes_are_a_sound_or_one_line(base, changes, end):
    data = bytearray(BASES[base])
    for place, piece in changes:
        data[place : place + len(piece)] = piece
    try:
        sound, rate = sounds.decode(bytes(data[:end]), 1000)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert sound.dtype == np.int16 and 0 < len(sound) <= 1000 and rate > 0
