"""WAV files to int16 arrays and back; length and rate."""

import io
import wave

import numpy as np

from transfusion.errors import UsageError


def decode(data: bytes, limit: int = 50_000_000) -> tuple[np.ndarray, int]:
    """Returns int16 [samples], channels averaged, and the samples per second of a WAV file.

    Raises:
      ValueError: with one line, when the bytes are no WAV file of 8 or 16 bits, or hold more than `limit` samples.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, size, rate, count = file.getparams()[:4]
            if count * channels > limit:
                raise ValueError(f"{count * channels} samples are over the limit of {limit}")
            raw = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"not a readable WAV file ({error})") from error
    if size not in (1, 2):
        raise ValueError(f"a WAV file of {8 * size} bits, not 8 or 16")
    # 8 bits are unsigned, 16 bits are signed.
    samples = np.frombuffer(raw, "<i2") if size == 2 else (np.frombuffer(raw, np.uint8).astype(np.int16) - 128) * 256
    return samples.reshape(-1, channels).mean(1).round().astype(np.int16), rate


def encode_wav(sound: np.ndarray, rate: int) -> bytes:
    """The WAV file, 16 bits, of int16 or float in [-1, 1] [samples]."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(to_int16(sound).astype("<i2").tobytes())
    return out.getvalue()


def to_float(sound: np.ndarray) -> np.ndarray:
    """int16 or float [...] as float32 in [-1, 1].

    Raises:
      UsageError: of another type.
    """
    sound = np.asarray(sound)
    if sound.dtype == np.int16:
        return sound.astype(np.float32) / np.float32(32768)
    if sound.dtype.kind != "f":
        raise UsageError(f"a sound must be int16, or float in [-1, 1], not {sound.dtype}")
    return sound.astype(np.float32)


def to_int16(sound: np.ndarray) -> np.ndarray:
    """int16 or float [...] as int16; values outside of [-1, 1] are clipped, NaN becomes 0."""
    if np.asarray(sound).dtype == np.int16:
        return np.asarray(sound)
    return np.round(np.clip(np.nan_to_num(sound), -1, 1) * 32767).astype(np.int16)


def fit(sound: np.ndarray, length: int) -> np.ndarray:
    """[samples] -> [length]: cut at the end, or followed by silence; 0 keeps the length."""
    return sound if not length else np.pad(sound[:length], (0, max(0, length - len(sound))))


def resample(sound: np.ndarray, old: int, new: int) -> np.ndarray:
    """int16 [samples] at `old` per second as int16 at `new` per second, without what that rate cannot hold."""
    if old == new:
        return sound
    count = max(1, round(len(sound) * new / old))
    spectrum = np.fft.rfft(to_float(sound))
    return to_int16(np.fft.irfft(spectrum[: count // 2 + 1], count) * (count / max(1, len(sound))))
