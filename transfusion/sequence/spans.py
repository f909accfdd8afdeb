"""Bidirectional blocks: which tokens of an item see each other whatever their order, by the `attention` of a stream."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Attention:
    """How the tokens of one item see each other.

    Attributes:
      blocks: places [n, S] -> the block of each token int [n], from 1 on; 0 is a causal token.
      size: (tokens of an item, its frames) -> how many tokens a block has.
    """

    blocks: Callable[[np.ndarray], np.ndarray]
    size: Callable[[int, int], int]


def _frames(places: np.ndarray) -> np.ndarray:
    """A frame has the time of its places; a time token (place -1) is in the first."""
    return np.maximum(places[:, 0], 0) + 1


ATTENTIONS: dict[str, Attention] = {
    "causal": Attention(lambda places: np.zeros(len(places), int), lambda tokens, frames: 1),
    "block": Attention(lambda places: np.ones(len(places), int), lambda tokens, frames: tokens),
    "frame": Attention(_frames, lambda tokens, frames: tokens // frames),
}
