"""Judges of digits in four media, none of which has seen a drawing: they are trained on real images, clips and sounds.

An image, a clip or the mel frames of a sound are numbers to a support vector machine; a text has to be one of those
that stand for a digit, letter by letter.
"""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.svm import SVC

from transfusion.codecs.mel import MelCodec
from transfusion.data import clips, images, sounds
from transfusion.data.packaged.omni_digits import texts

Judge = Callable[[Sequence], np.ndarray]
"""Samples of a medium -> the digit of each; -1 for none."""

MEL = MelCodec()


def read(folder: pathlib.Path, medium: str, split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The samples of a medium as they were drawn or spoken, in an order that mixes the digits, and their digits."""
    decode = {
        "image": lambda data: images.decode(data),
        "clip": lambda data: clips.fit(clips.decode(data), channels=1),
        "sound": lambda data: sounds.decode(data)[0],
    }[medium]
    # Images and clips that were turned end with -1 and -2.
    paths = [p for p in sorted((folder / medium / split).iterdir()) if medium == "sound" or p.stem.endswith("-0")]
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    return [decode(path.read_bytes()) for path in paths], np.array([int(path.name[0]) for path in paths])


def numbers(medium: str, sample: np.ndarray) -> np.ndarray:
    """What a judge sees of a sample."""
    if medium == "sound":
        return MEL.encode(sample).ravel()
    return np.asarray(sample, np.float32).ravel() / 255


def train_judge(folder: pathlib.Path, medium: str) -> tuple[Judge, dict[str, int]]:
    """A judge of images, clips or sounds, and how many real held-out samples it judges right."""
    (train, digits), (held_out, wanted) = read(folder, medium, "train"), read(folder, medium, "heldout")
    machine = SVC(C=10.0).fit(np.stack([numbers(medium, sample) for sample in train]), digits)

    def judge(samples: Sequence[np.ndarray]) -> np.ndarray:
        return machine.predict(np.stack([numbers(medium, sample) for sample in samples]))

    return judge, {"right": int((judge(held_out) == wanted).sum()), "of": len(wanted)}


def judge_texts(samples: Sequence[str]) -> np.ndarray:
    """The digit that each text names exactly; -1 for a text that names none."""
    known = {text: digit for digit in range(10) for text in texts(digit)}
    return np.array([known.get(sample.strip(), -1) for sample in samples])
