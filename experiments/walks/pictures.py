"""Writes a folder of pictures as a user may have one: sizes of all kinds, and captions.csv.

  python experiments/walks/pictures.py photos

The pictures are real handwritten digits of scikit-learn, on paper of a random colour and size.
"""

import csv
import pathlib
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main(folder: str, number: int = 200) -> None:
    place = pathlib.Path(folder)
    place.mkdir(parents=True)
    digits, draw = load_digits(), np.random.default_rng(0)
    rows = []
    for i in range(number):
        ink = 1 - digits.images[i][..., None] / 16
        paper = draw.integers(160, 256, 3)
        sides = tuple(int(side) for side in draw.integers(40, 200, 2))
        picture = Image.fromarray((ink * paper).astype(np.uint8)).resize(sides, Image.Resampling.BICUBIC)
        picture.save(place / f"{i:03}.png")
        rows.append((f"{i:03}.png", f"a handwritten {NAMES[digits.target[i]]}"))
    with open(place / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    print(f"{number} pictures in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
