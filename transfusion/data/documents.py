"""Raw records to documents: order of caption and image, dropped captions, latents, token ids."""

import dataclasses
from collections.abc import Callable

import numpy as np

from transfusion.codecs import text
from transfusion.data.config import DataConfig, Record
from transfusion.data.randomness import scramble
from transfusion.sequence import Document, Segment

EncodeImage = Callable[[np.ndarray], np.ndarray]
"""uint8 [H, W, 1 or 3] -> float32 latents [h, w, C]."""


def pixels(image: np.ndarray) -> np.ndarray:
    """The identity codec: uint8 [H, W, C] -> float32 [H, W, C] in [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """What chance decides about a record."""

    caption: bool = True
    caption_first: bool = True
    mirror: bool = False


def choose(record: Record, config: DataConfig, seed: tuple[int, int]) -> Choice:
    """Draws from `seed` = (seed of the run, index of the record) in which form the record becomes a document.

    With probability 1 - `caption_first` the image stands first. With probability `drop_caption` a caption-first
    document has its image only: what classifier-free guidance calls the null condition.
    """
    if "image" not in record:
        return Choice()
    # Always three draws, so that changing one probability does not change what the others decide.
    order, drop, mirror = (scramble(*seed, draw) / 2**64 for draw in range(3))
    mirror = bool(mirror < config.flip)
    if "caption" not in record:
        return Choice(False, True, mirror)
    if order >= config.caption_first:
        return Choice(True, False, mirror)
    return Choice(bool(drop >= config.drop_caption), True, mirror)


def to_document(record: Record, choice: Choice, encode_image: EncodeImage = pixels) -> Document:
    """Turns a record into a document: one text segment; or an image that is the 'target' after its caption or alone, or
    the 'context' before its caption."""
    if "image" not in record:
        return (Segment("text", text.encode(record["text"])),)
    image = record["image"][:, ::-1] if choice.mirror else record["image"]
    latents = np.asarray(encode_image(image), np.float32)
    if not choice.caption:
        return (Segment("image", latents, "target"),)
    caption = Segment("text", text.encode(record["caption"]))
    if choice.caption_first:
        return caption, Segment("image", latents, "target")
    return Segment("image", latents, "context"), caption
