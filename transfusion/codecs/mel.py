"""The codec of sounds: log-mel frames, and back by the method of Griffin and Lim (1984). Nothing is learned.

The way back guesses phases: words can be understood, but it is not made for listening. A learned vocoder sounds better,
and there is none here.

Shape letters: N samples, T frames, W samples of a window, F = W / 2 + 1 frequencies, C mel bands.
"""

import dataclasses
from functools import cached_property

import numpy as np

from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """How a sound becomes frames. The defaults suit speech at 8 kHz.

    Attributes:
      rate: samples per second.
      bands: C, the number of mel bands between 0 and rate / 2.
      window: samples of a frame.
      hop: samples from one frame to the next; a sound has N / hop frames.
      floor: the least amplitude of a band, where full scale is 1. Anything quieter is silence.
      mean, deviation: those of the logarithms of the bands' amplitudes, with which the latents are standardised.
      iterations: steps of the search for the phases.
    """

    rate: int = 8000
    bands: int = 64
    window: int = 512
    hop: int = 128
    floor: float = 1e-4
    mean: float = -8.0
    deviation: float = 1.7
    iterations: int = 60

    def __post_init__(self):
        if min(self.rate, self.bands, self.window, self.hop) < 1 or min(self.floor, self.deviation) <= 0:
            raise UsageError("codec.mel: rate, bands, window, hop, floor and deviation must be positive")
        if (self.window - self.hop) % 2 or not self.hop <= self.window // 2:
            raise UsageError(
                f"codec.mel: hop {self.hop} must be at most half of window {self.window}, both even or odd"
            )


@dataclasses.dataclass(frozen=True)
class MelCodec:
    """Sounds int16 or float [N] <-> latents float32 [T, C] of about unit variance, N = T hop."""

    config: MelConfig = MelConfig()

    @cached_property
    def bands(self) -> np.ndarray:
        """Triangles [F, C] whose corners are evenly spaced in mel, each of area one over the frequencies."""
        config = self.config
        frequency = np.fft.rfftfreq(config.window, 1 / config.rate)
        highest = 2595 * np.log10(1 + config.rate / 2 / 700)
        corners = 700 * (10 ** (np.linspace(0, highest, config.bands + 2) / 2595) - 1)
        # Triangles of low bands would be narrower than a step of the frequencies, and so empty.
        wide = np.maximum(np.diff(corners), config.rate / config.window)
        rises = 1 - (corners[1:-1] - frequency[:, None]) / wide[:-1]
        falls = 1 - (frequency[:, None] - corners[1:-1]) / wide[1:]
        triangles = np.clip(np.minimum(rises, falls), 0, None)
        return triangles / triangles.sum(0)

    @cached_property
    def taper(self) -> np.ndarray:
        """The periodic Hann window [W]."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.config.window) / self.config.window)

    def encode(self, sound: np.ndarray) -> np.ndarray:
        """[N] -> [T, C].

        Raises:
          UsageError: if the sound has another number of axes, or `hop` does not divide N.
        """
        config, sound = self.config, sound_to_float(sound)
        if sound.ndim != 1 or not len(sound) or len(sound) % config.hop:
            raise UsageError(
                f"a sound must be [N], N a multiple of {config.hop}, not {list(sound.shape)}: set the source's length"
            )
        # A full-scale sine has an amplitude of 1.
        amplitude = np.abs(self.transform(sound)) @ self.bands * (2 / self.taper.sum())
        return ((np.log(np.maximum(amplitude, config.floor)) - config.mean) / config.deviation).astype(np.float32)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """[..., T, C] -> float32 [..., N] in [-1, 1]."""
        latents = np.asarray(latents, np.float64)
        sounds = [self._sound(frames) for frames in latents.reshape(-1, *latents.shape[-2:])]
        return np.stack(sounds).reshape(*latents.shape[:-2], -1).astype(np.float32)

    def _sound(self, latents: np.ndarray) -> np.ndarray:
        config = self.config
        # Nothing is louder than full scale, and anything below the floor is silence.
        amplitude = np.minimum(np.exp(latents * config.deviation + config.mean), 1.0)
        amplitude = np.where(amplitude > 1.01 * config.floor, amplitude, 0.0) * (self.taper.sum() / 2)
        magnitude = self._spread(amplitude)
        # Griffin and Lim's iteration with the momentum of Perraudin et al. (2013).
        phase = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitude.shape))
        before = np.zeros_like(phase)
        for _ in range(config.iterations):
            now = self.transform(self.inverse(magnitude * phase))
            phase, before = now + 0.99 * (now - before), now
            phase /= np.maximum(np.abs(phase), 1e-12)
        return np.clip(self.inverse(magnitude * phase), -1, 1)

    def _spread(self, amplitude: np.ndarray) -> np.ndarray:
        """Magnitudes [T, F] >= 0 whose bands are the amplitudes [T, C], found by multiplicative least squares."""
        spread = amplitude @ self.bands.T + 1e-12
        target = amplitude @ self.bands.T
        for _ in range(100):
            spread *= target / ((spread @ self.bands) @ self.bands.T + 1e-12)
        return spread

    def transform(self, sound: np.ndarray) -> np.ndarray:
        """The spectrum of each frame, complex [T, F], of a sound [N] with silence before and behind it."""
        config = self.config
        padded = np.pad(sound, (config.window - config.hop) // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.window)[:: config.hop]
        return np.fft.rfft(frames * self.taper, axis=-1)

    def inverse(self, spectrum: np.ndarray) -> np.ndarray:
        """The sound [N] whose spectrum is nearest to complex [T, F]."""
        config = self.config
        frames = np.fft.irfft(spectrum, config.window, axis=-1) * self.taper
        total = config.hop * (len(frames) - 1) + config.window
        sound, weight = np.zeros(total), np.zeros(total)
        at = np.arange(len(frames))[:, None] * config.hop + np.arange(config.window)
        np.add.at(sound, at, frames)
        np.add.at(weight, at, np.broadcast_to(self.taper**2, at.shape))
        edge = (config.window - config.hop) // 2
        return (sound / np.maximum(weight, 1e-3))[edge : total - edge]


def sound_to_float(sound: np.ndarray) -> np.ndarray:
    """int16 or float [...] as float32 in [-1, 1].

    Raises:
      UsageError: if the sound has another type.
    """
    sound = np.asarray(sound)
    if sound.dtype == np.int16:
        return sound.astype(np.float32) / np.float32(32768)
    if sound.dtype.kind != "f":
        raise UsageError(f"a sound must be int16, or float in [-1, 1], not {sound.dtype}")
    return sound.astype(np.float32)
