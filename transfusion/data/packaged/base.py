"""What the TFDS builders of packaged data sets share: the base class, and how a tenth is held out."""

import hashlib
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds


class PackagedBuilder(tfds.core.GeneratorBasedBuilder):
    """The base class of the builders of packaged data sets."""

    # TFDS looks beside the code for checksums of downloads. There are none, and the search imports importlib_resources,
    # which TFDS does not list among its dependencies.
    code_path = None


def in_held_out_tenth(name: str) -> bool:
    """Whether a name belongs to the tenth that is held out."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < 0.1


def splits_of(rows: list[tuple], out: set[str], generate: Callable[[list[tuple]], Iterator]) -> dict[str, Iterator]:
    """Splits rows, whose first entries are their names: those in `out` are 'heldout', the others 'train'.

    A split without rows is left out, because TFDS refuses it.
    """
    parts = {"train": [r for r in rows if r[0] not in out], "heldout": [r for r in rows if r[0] in out]}
    return {split: generate(part) for split, part in parts.items() if part}
