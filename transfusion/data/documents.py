"""Makes a record a document.

`choose_document` draws the form (the order, editing, what is left out), and `to_document` makes the document.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from transfusion.data.config import DataConfig, Record
from transfusion.data.media import medium_of
from transfusion.sequence import Document, Segment, text
from transfusion.sequence.text import BYTES, Tokenizer

_MASK = 2**64 - 1

Encode = Callable[[np.ndarray], np.ndarray]
"""The encoder of a codec: the array of a record -> float32 latents or int32 codes, such as [H, W, C] -> [h, w, c]."""


def pixel_latents(image: np.ndarray) -> np.ndarray:
    """The identity codec: uint8 [..., H, W, C] -> float32 [..., H, W, C] in [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1.0


def segment_value(encoded: np.ndarray) -> np.ndarray:
    """The output of a codec as a segment holds it: codes become int32, latents float32."""
    encoded = np.asarray(encoded)
    return encoded.astype(np.int32 if encoded.dtype.kind in "iu" else np.float32, copy=False)


def scramble(*counters: int) -> int:
    """A fixed pseudo-random number of 64 bits for the counters: the splitmix64 finaliser over each in turn (Steele, Lea
    and Flood 2014, "Fast splittable pseudorandom number generators").

    A generator per record would take 80 us; this chain of multiplications takes next to nothing.
    """
    x = 0
    for counter in counters:
        x = (x + counter + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x


# The edits that examples of editing ask for: the words, and what they do to an image uint8 [H, W, C].
EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "negative": lambda image: 255 - image,
}


@dataclasses.dataclass(frozen=True)
class DocumentChoice:
    """The form in which a record becomes a document, as chance decided it.

    Attributes:
      caption: whether the document has the caption; in an example of editing, whether it has the words of the edit.
      caption_first: whether the caption precedes the medium.
      mirror: whether the image or clip is mirrored.
      both: whether the medium is drawn and then read, not only one of the two.
      edit: a key of `EDITS`; '' for a document that is no example of editing.
      dropped: streams of the image to be edited that are left out.
      draw_earlier: whether the image to be edited is drawn and then read, not only read.
      null: what stands in place of a caption that is left out, a key of `text.UNSEEN`.
      shift: pixels by which the image or clip is moved, down and to the right.
      which: the number of the caption, if the record has several.
      label: whether streams with classes get the record's class; otherwise they get the class that stands for none.
    """

    caption: bool = True
    caption_first: bool = True
    mirror: bool = False
    both: bool = False
    edit: str = ""
    dropped: tuple[str, ...] = ()
    draw_earlier: bool = False
    null: str = "drop"
    shift: tuple[int, int] = (0, 0)
    which: int = 0
    label: bool = False


def choose_document(record: Record, config: DataConfig, seed: tuple[int, int]) -> DocumentChoice:
    """Draws the form in which a record becomes a document; `seed` is (seed of the run, index of the record).

    With probability 1 - `caption_first` the medium stands first. With probability `drop_caption` a document that would
    begin with its caption has only the medium, which is the null condition of classifier-free guidance. The class of a
    record is a condition, too: it is left out whenever the caption is, or would be if there were one.

    Before all that, a captioned image becomes with probability `edit` an example of editing: the image, what to do
    (left out with probability `drop_caption`), and the result. Each stream that `drop_conditions` names is left out of
    the image to be edited with its probability (BAGEL, arXiv 2505.14683: text 0.1, vision tower 0.5, clean latents
    0.1). Images that only captions follow keep all their streams, because nothing is drawn from them. With probability
    `draw_earlier` the image to be edited is a target as well (in Show-o2 each of several images has a noise level of
    its own, except that with probability 0.7 all images before a later one, chosen evenly, are clean and no targets).
    """
    kind = medium_of(record)
    if not kind:
        return DocumentChoice()

    # Each decision has a draw of its own, so that changing one probability changes no other decision.
    def chance(draw: int) -> float:
        return scramble(*seed, draw) / 2**64

    caption, both = chance(1) >= config.drop_caption, chance(3) < config.both
    seen = kind in ("image", "video")
    mirror = seen and chance(2) < config.flip
    # Negative numbers, because the conditions draw with the numbers from 6 on, however many there are.
    shift = tuple(int(chance(draw) * (2 * config.shift + 1)) - config.shift for draw in (-2, -3)) if seen else (0, 0)
    if "caption" not in record:
        return DocumentChoice(False, True, mirror, both, shift=shift, label=caption)
    which = int(chance(-4) * len(record["captions"])) if "captions" in record else 0
    if kind == "image" and chance(4) < config.edit:
        edit = list(EDITS)[int(chance(5) * len(EDITS))]
        conditions = enumerate(sorted(config.drop_conditions.items()), start=6)
        dropped = tuple(stream for draw, (stream, share) in conditions if chance(draw) < share)
        earlier = chance(-1) < config.draw_earlier
        return DocumentChoice(caption, True, mirror, both, edit, dropped, earlier, config.null_caption, shift)
    if chance(0) >= config.caption_first:
        return DocumentChoice(True, False, mirror, both, shift=shift, which=which)
    return DocumentChoice(
        caption, True, mirror, both, null=config.null_caption, shift=shift, which=which, label=caption
    )


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image [..., H, W, C], moved down and to the right; its edge pixels are repeated where it has left."""
    rows, columns = (np.arange(n) - by for n, by in zip(image.shape[-3:-1], (down, right), strict=True))
    return image[..., np.clip(rows, 0, len(rows) - 1)[:, None], np.clip(columns, 0, len(columns) - 1), :]


def _words(choice: DocumentChoice, caption: str, tokenizer: Tokenizer) -> Document:
    """The caption of a document. What stands in place of one that is left out is 'context': it is not learned."""
    ids = tokenizer.encode(caption)
    if choice.caption:
        return (Segment("text", ids),)
    ids = text.UNSEEN[choice.null](ids)
    return () if ids is None or not len(ids) else (Segment("text", ids, "context"),)


def to_document(
    record: Record,
    choice: DocumentChoice,
    encode: Encode = pixel_latents,
    keep_pixels: bool = False,
    frames: bool = False,
    tokenizer: Tokenizer = BYTES,
) -> Document:
    """Makes a record a document in the form that was chosen.

    The document is a text; or a medium with its caption, the 'target' behind it, the 'context' before it, or 'both'; or
    an example of editing: an image, what to do with it, and the result.

    Args:
      encode: the codec.
      keep_pixels: whether images carry their pixels besides their latents.
      frames: whether a clip becomes its frames, images one after the other. Frames that are drawn are then read as
        well, because the next frame is drawn from them (a world model).
      tokenizer: makes ids of texts.
    """
    kind = medium_of(record)
    if not kind:
        return (Segment("text", tokenizer.encode(record["text"])),)

    label = int(record.get("label", -1)) if choice.label else -1

    def segment(medium: np.ndarray, role: str, dropped: tuple[str, ...] = (), kind: str = kind) -> Segment:
        shown = pixel_latents(medium) if keep_pixels else None
        latents = segment_value(medium if "encoded" in record else encode(medium))
        return Segment(kind, latents, role, label, pixels=shown, dropped=dropped)

    medium = record[kind][..., ::-1, :] if choice.mirror else record[kind]
    medium = moved(medium, *choice.shift) if any(choice.shift) else medium
    drawn, read = ("both", "both") if choice.both else ("target", "context")
    caption = record["captions"][choice.which] if "captions" in record else record.get("caption", "")
    words = _words(choice, choice.edit or str(caption), tokenizer)
    if choice.edit:
        earlier = "both" if choice.draw_earlier else "context"
        return segment(medium, earlier, choice.dropped), *words, segment(EDITS[choice.edit](medium), drawn)
    if kind == "video" and frames:
        role = "both" if choice.caption_first else read
        shown = tuple(segment(frame, role, kind="image") for frame in medium)
    else:
        shown = (segment(medium, drawn if choice.caption_first else read),)
    return (*words, *shown) if choice.caption_first else (*shown, *words)
