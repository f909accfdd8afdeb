"""Byte-level text: ids 0..255 are UTF-8 bytes, the special tokens follow. Nothing to download, no word is unknown."""

import numpy as np

PAD, BOS, EOS, BOI, EOI = range(256, 261)
# Inside an image of codes: ends of a row and of a frame, and what separates its size (Emu3) or its codes (UniToken)
# from what follows.
EOL, EOF, SEP = range(261, 264)
# A multiple of 8, so that the vocabulary axis of the embedding can be split over a mesh axis.
VOCABULARY = 264


def encode(text: str) -> np.ndarray:
    """Returns the int32 [n] UTF-8 bytes of `text`, without special tokens."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(ids: np.ndarray) -> str:
    """Returns the text of int ids [n]; special tokens are dropped, broken UTF-8 is replaced."""
    ids = np.asarray(ids).reshape(-1)
    return bytes(ids[ids < 256].astype(np.uint8)).decode("utf-8", errors="replace")
