"""Digits as texts, images, spoken numbers and clips: records of one digit in two of these media, as a folder of files.

The images are the handwritten digits of scikit-learn, and a clip shows how one of them is drawn: its ink appears along
its strokes, from its topmost point on. The sounds are the ten recordings of `speech`, at other pitches and tempos, with
noise. A record of `train.jsonl` has a digit twice, first as what is read and then as what is written, spoken or drawn:
another sample of the same class, in any two of the media, or in one of them. Images and clips that are read are
also turned, scaled and moved a little, because 1,500 are few to learn to read from; those that are drawn never are.

`train` has the digits that `digits` trains on, `heldout` those that it tests on, and the spoken numbers at combinations
of pitch and tempo that training never has.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from transfusion.codecs.mel import sound_to_float
from transfusion.data import clips, images, sounds
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.data.packaged.speech import RECORDINGS
from transfusion.errors import UsageError, require

FRAMES = 8  # of a clip
RATE, SAMPLES = 8000, 6144  # of a sound: 0.77 s, the longest word at the slowest tempo
PITCHES, TEMPOS = (0.8, 1.25), (0.87, 1.3)  # factors, from the least to the largest
CELLS = 4  # the logarithm of each range is cut into so many parts; some combinations of parts are held out
TURNED = {"train": 2, "heldout": 0}  # further images and clips of each digit, for reading
SPOKEN = {"train": 120, "heldout": 30}  # sounds of each digit
PAIRS = {"train": 48_000, "heldout": 640}  # records
MEDIA = ("text", "image", "sound", "clip")


class _Split:
    """A part of the data: its files, and of each medium and digit the segments to choose from.

    Attributes:
      read, made: segments that records begin with, and those that they end with.
    """

    def __init__(self, folder: pathlib.Path, name: str):
        self._folder, self._name = folder, name
        self.read: dict[tuple[str, int], list[dict]] = {}
        self.made: dict[tuple[str, int], list[dict]] = {}
        for medium in MEDIA[1:]:
            (folder / medium / name).mkdir(parents=True)
        for digit in range(10):
            for text in texts(digit):
                self._add("text", digit, {"text": text}, made=True)

    def file(self, medium: str, digit: int, name: str, data: bytes, made: bool = True) -> None:
        """Writes the file DIGIT-NAME of a sample; `made` says whether records may end with it."""
        path = f"{medium}/{self._name}/{digit}-{name}"
        (self._folder / path).write_bytes(data)
        self._add(medium, digit, {medium: path}, made)

    def _add(self, medium: str, digit: int, segment: dict, made: bool) -> None:
        for pool in (self.read, self.made) if made else (self.read,):
            pool.setdefault((medium, digit), []).append(segment)

    def pairs(self, count: int, rng: np.random.Generator) -> Iterator[dict]:
        """Records of two samples of one digit, as many for each of the 16 pairs of media.

        Only the second is learned. A text that is read ends with a colon, so that no text runs into the next.
        """
        for number in range(count):
            first, second = (MEDIA[i] for i in divmod(number % len(MEDIA) ** 2, len(MEDIA)))
            digit = int(rng.integers(10))
            read = self.read[first, digit][rng.integers(len(self.read[first, digit]))]
            others = [segment for segment in self.made[second, digit] if segment is not read]
            made = others[rng.integers(len(others))]
            read = {"text": f"{read['text']}:"} if first == "text" else {**read, "role": "context"}
            yield {"segments": [{**read, "loss": False}, made]}


def write(folder: pathlib.Path) -> None:
    """Writes `train.jsonl`, `heldout.jsonl` and the files that they name into a new folder.

    Raises:
      UsageError: if there are no recordings.
    """
    recordings = read_recordings()
    digits = require("sklearn.datasets", "demo").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the split of `packaged.digits`
    for name, numbers in (("train", order[:1500]), ("heldout", order[1500:])):
        split, rng = _Split(folder, name), np.random.default_rng(len(name))
        for i, version in itertools.product(map(int, numbers), range(1 + TURNED[name])):
            digit, image = int(digits.target[i]), digits.images[i] / 16
            image = np.round((turned(image, rng) if version else image) * 255).astype(np.uint8)
            split.file("image", digit, f"{i:04}-{version}.png", images.encode_png(image[..., None]), not version)
            split.file("clip", digit, f"{i:04}-{version}.webp", clips.encode_clip(drawn(image), ".webp"), not version)
        for digit, i in itertools.product(range(10), range(SPOKEN[name])):
            sound = spoken(recordings[digit], rng, name == "heldout")
            split.file("sound", digit, f"{i:04}.wav", sounds.encode_wav(sound, RATE))
        lines = "".join(f"{json.dumps(record)}\n" for record in split.pairs(PAIRS[name], rng))
        (folder / f"{name}.jsonl").write_text(lines)


def texts(digit: int) -> tuple[str, ...]:
    """The texts that stand for a digit."""
    return DIGIT_WORDS[digit], str(digit), f"digit {digit}"


def turned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image [H, W] in [0, 1], turned by at most 12 degrees, scaled by at most a tenth and moved by 0.6 pixels."""
    angle, scale = np.radians(rng.uniform(-12, 12)), rng.uniform(0.9, 1.1)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ (centre + rng.uniform(-0.6, 0.6, 2))
    return require("scipy.ndimage", "demo").affine_transform(image, matrix, offset, order=1)


# --- clips ------------------------------------------------------------------------------------------------------------


def drawn(image: np.ndarray) -> np.ndarray:
    """A clip uint8 [FRAMES, H, W, 1] in which the ink of a digit uint8 [H, W] appears along its strokes."""
    order = strokes(image)
    clip = np.zeros((FRAMES, *image.shape), np.uint8)
    for frame in range(FRAMES):
        y, x = order[: -(-len(order) * (frame + 1) // FRAMES)].T
        clip[frame, y, x] = image[y, x]
    return clip[..., None]


def strokes(image: np.ndarray) -> np.ndarray:
    """The pixels (y, x) with ink, in the order of their distance from the topmost one along the ink.

    A step to one of the eight neighbours is the shorter, the more ink it meets, and a step over white is long.
    """
    ink, places = image / 255, np.argwhere(np.ones_like(image))
    top = int(np.flatnonzero(ink.max(1) > 0.25)[0])
    start = top * image.shape[1] + int(ink[top].argmax())
    steps = np.linalg.norm(places[:, None] - places, axis=-1)
    costs = np.where(steps < 1.5, steps, 0) / (0.05 + ink.ravel())  # 0: no neighbours
    distance = require("scipy.sparse.csgraph", "demo").dijkstra(costs, indices=start).reshape(image.shape)
    found = np.argwhere(image > 0)
    return found[np.argsort(distance[found[:, 0], found[:, 1]], kind="stable")]


# --- sounds -----------------------------------------------------------------------------------------------------------


def read_recordings() -> list[np.ndarray]:
    """The words zero to nine, float32 [samples] at `RATE`, without the silence before and after them.

    Raises:
      UsageError: if they are not there.
    """
    root = pathlib.Path(RECORDINGS) / "digits"
    if not root.is_dir():
        raise UsageError(f"no recordings at {root}: apt-get install asterisk-core-sounds-en-wav")
    found = []
    for digit in range(10):
        sound, rate = sounds.decode((root / f"{digit}.wav").read_bytes())
        sound = sound_to_float(sounds.resample(sound, rate, RATE))
        loudness = np.sqrt(np.convolve(sound**2, np.ones(80) / 80, "same"))
        (heard,) = np.nonzero(loudness > 0.03 * loudness.max())
        found.append(sound[heard[0] : heard[-1] + 1])
    return found


def cell_is_held_out(pitch: int, tempo: int) -> bool:
    """Whether training never has this part of the pitches with this part of the tempos; it has each with others."""
    return (pitch + tempo) % CELLS == 0


def spoken(word: np.ndarray, rng: np.random.Generator, held_out: bool) -> np.ndarray:
    """A word float [samples] at a random pitch, tempo, onset and loudness, with noise; float32 [SAMPLES]."""
    cells = [c for c in itertools.product(range(CELLS), repeat=2) if cell_is_held_out(*c) == held_out]
    cell = cells[rng.integers(len(cells))]
    pitch, tempo = (
        low * (high / low) ** ((part + rng.random()) / CELLS)
        for part, (low, high) in zip(cell, (PITCHES, TEMPOS), strict=True)
    )
    sound = varied(word, pitch, tempo)[:SAMPLES]
    onset = int(rng.integers(min(320, SAMPLES - len(sound)) + 1))
    sound = np.pad(sound, (onset, SAMPLES - onset - len(sound)))
    sound *= 10 ** rng.uniform(-1.3, -0.9) / np.sqrt(np.mean(sound**2))
    noise = rng.normal(size=SAMPLES) * 10 ** rng.uniform(-3.5, -2.5)
    return np.clip(sound + noise, -1, 1).astype(np.float32)


def varied(sound: np.ndarray, pitch: float, tempo: float) -> np.ndarray:
    """A sound [samples] whose frequencies are `pitch` times as high and which is `tempo` times as fast.

    Played `pitch` times as fast, a sound is higher and shorter. It is made longer before, by overlapping pieces of it
    that fit each other best (WSOLA, Verhelst and Roelands 1993), which keeps its frequencies.
    """
    longer = _stretched(sound, pitch / tempo)
    count = round(len(longer) / pitch)
    return np.interp(np.arange(count) * pitch, np.arange(len(longer)), longer)


def _stretched(sound: np.ndarray, factor: float, piece: int = 320, search: int = 80) -> np.ndarray:
    """The sound [samples] with `factor` times as many samples."""
    hop, window = piece // 2, np.hanning(piece + 1)[:-1]
    count = max(1, round(len(sound) * factor / hop))
    padded = np.pad(sound, (search, piece + search + hop))
    out, at = np.zeros(count * hop + piece), 0
    for number in range(count):
        start = min(round(number * hop / factor), len(sound))  # in `padded`, `search` samples before the piece
        if number:
            follows = padded[at + hop : at + hop + piece]
            follows = np.pad(follows, (0, piece - len(follows)))
            places = np.lib.stride_tricks.sliding_window_view(padded[start : start + piece + 2 * search], piece)
            at = start + int((places @ follows).argmax())
        else:
            at = search
        out[number * hop : number * hop + piece] += padded[at : at + piece] * window
    return out[: count * hop]
