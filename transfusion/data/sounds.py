"""Sounds: WAV files to int16 arrays and back, cut or padded to a length, resampled to a rate."""

import dataclasses
import io
import struct
import wave

import numpy as np

from transfusion.codecs.mel import sound_to_float

SAMPLE_LIMIT = 50_000_000
_PIPE = 0x7FFF0000  # programs that write into a pipe give such a length: ffmpeg 0xFFFFFFFF, sox 0x7FFFF000
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_ENCODINGS = {_PCM: "PCM", 2: "ADPCM", _FLOAT: "float", 6: "A-law", 7: "mu-law", 17: "ADPCM", 85: "MP3"}
_GUID = bytes.fromhex("000000001000800000aa00389b71")  # after the encoding, in a format that is extensible


def decode(data: bytes, limit: int = SAMPLE_LIMIT) -> tuple[np.ndarray, int]:
    """Returns int16 [samples], channels averaged, and the samples per second of a WAV file.

    PCM of 8, 16, 24 and 32 bits and floats of 32 and 64 bits are read. Programs that write into a pipe cannot know the
    length of the file. They give the length 0, or one that no file has: then the samples are read up to the end.

    Raises:
      ValueError: with one line, when the bytes are no such file, break off, or hold more than `limit` samples.
    """
    form, start, size = _chunks(data)
    count = size // form.frame * form.channels
    if count > limit:
        raise ValueError(f"{count} samples are over the limit of {limit}")
    if not count:
        raise ValueError("not a readable WAV file (it holds no samples)")
    samples = _int16_scale(np.frombuffer(data, np.uint8, size // form.frame * form.frame, start), form)
    mean = samples.reshape(-1, form.channels).mean(1).round()
    return np.clip(mean, -32768, 32767).astype(np.int16), form.rate


@dataclasses.dataclass(frozen=True)
class _Form:
    """How samples are stored. `frame` is the number of bytes that one sample of all channels takes."""

    encoding: int
    channels: int
    rate: int
    bits: int

    @property
    def frame(self) -> int:
        return self.channels * self.bits // 8


def _chunks(data: bytes) -> tuple[_Form, int, int]:
    """How the samples are stored, the offset at which they begin, and how many bytes they take."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("not a readable WAV file (it does not begin as one)")
    form, at = None, 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        there = len(data) - at
        if name == b"data":
            if form is None:
                raise ValueError("not a readable WAV file (its samples come before their format)")
            ends = 8 + int.from_bytes(data[4:8], "little")  # the end of the file, as its head says
            if size >= _PIPE or (size == 0 and not at < ends <= len(data)):
                size = there
            if size > there:
                raise ValueError(f"not a readable WAV file (it breaks off after {there} of {size} bytes of samples)")
            return form, at, size
        if name == b"fmt ":
            form = _form(data[at : at + size])
        at += size + size % 2
    raise ValueError(f"not a readable WAV file (it has no {'samples' if form else 'format'})")


def _form(chunk: bytes) -> _Form:
    if len(chunk) < 16:
        raise ValueError("not a readable WAV file (its format breaks off)")
    encoding, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", chunk[:16])
    if encoding == _EXTENSIBLE and chunk[26:40] == _GUID:
        encoding = int.from_bytes(chunk[24:26], "little")
    form = _Form(encoding, channels, rate, bits)
    if bits not in _BITS.get(encoding, ()):
        name = _ENCODINGS.get(encoding, f"of encoding {encoding}")
        raise ValueError(f"a WAV file of {bits} bits ({name}): save it as PCM of 8 to 32 bits or as float")
    if not channels or not rate or frame != form.frame:
        raise ValueError(f"not a readable WAV file ({channels} channels, rate {rate}, {frame} bytes a sample)")
    return form


def _int16_scale(raw: np.ndarray, form: _Form) -> np.ndarray:
    """The samples of uint8 [bytes] as numbers from -32768 to 32767."""
    if form.encoding == _FLOAT:
        return to_int16(raw.view(f"<f{form.bits // 8}"))
    if form.bits == 8:  # only these are unsigned
        return (raw.astype(np.int16) - 128) * 256
    if form.bits == 16:
        return raw.view("<i2")
    if form.bits == 32:
        return raw.view("<i4") / 2**16
    parts = raw.reshape(-1, 3)
    return parts[:, 1:].copy().view("<i2")[:, 0] + parts[:, 0] / 256  # the lowest of three bytes is a fraction


def encode_wav(sound: np.ndarray, rate: int) -> bytes:
    """The bytes of a WAV file of 16 bits that holds int16, or float in [-1, 1], [samples]."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(to_int16(sound).astype("<i2").tobytes())
    return out.getvalue()


def to_int16(sound: np.ndarray) -> np.ndarray:
    """int16 or float [...] as int16. Floats outside [-1, 1] are clipped, NaN becomes 0."""
    if np.asarray(sound).dtype == np.int16:
        return np.asarray(sound)
    return np.round(np.clip(np.nan_to_num(sound), -1, 1) * 32767).astype(np.int16)


def fit(sound: np.ndarray, length: int) -> np.ndarray:
    """[samples] -> [length]: the sound is cut at its end, or followed by silence. 0 keeps its length."""
    return sound if not length else np.pad(sound[:length], (0, max(0, length - len(sound))))


def resample(sound: np.ndarray, old: int, new: int, limit: int = SAMPLE_LIMIT) -> np.ndarray:
    """int16 [samples] at `old` per second as int16 at `new` per second; frequencies above the new limit are removed.

    Raises:
      ValueError: with one line, if the result has more than `limit` samples, or a rate is below 1.
    """
    if old == new:
        return sound
    if old < 1 or new < 1:
        raise ValueError(f"cannot resample from {old} samples per second to {new}")
    count = max(1, round(len(sound) * new / old))
    if count > limit:
        raise ValueError(f"{len(sound)} samples at {old} per second are {count} at {new}, over the limit of {limit}")
    spectrum = np.fft.rfft(sound_to_float(sound))
    return to_int16(np.fft.irfft(spectrum[: count // 2 + 1], count) * (count / max(1, len(sound))))
