"""Makes a record a document.

`choose_document` draws the form (the order, editing, what is left out). `segments_of` makes a record of any form
segments in reading order; `to_document` encodes them, and puts the chat template round the turns of a conversation.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from transfusion.data.config import DataConfig, Record
from transfusion.data.media import medium_of
from transfusion.data.segments import RawSegment
from transfusion.sequence import TEXT, Document, Segment, text
from transfusion.sequence.text import BYTES, Tokenizer

_MASK = 2**64 - 1

Encode = Callable[[str, np.ndarray], np.ndarray]
"""The encoders of a model's codecs: the kind of a medium and its array -> float32 latents or int32 codes, such as
[H, W, C] -> [h, w, c]."""


def pixel_latents(image: np.ndarray) -> np.ndarray:
    """The identity codec: uint8 [..., H, W, C] -> float32 [..., H, W, C] in [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1.0


def as_pixels(kind: str, medium: np.ndarray) -> np.ndarray:
    """The `Encode` of a model whose only codec is the identity."""
    return pixel_latents(medium)


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
      which: the number of the caption, or of the variant of a text, if the record has several.
      label: whether streams with classes get the record's class; otherwise they get the class that stands for none.
      learned_turns: the turns of a conversation that are learned, unless a segment says otherwise.
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
    learned_turns: tuple[str, ...] = ("assistant",)


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

    A record with `segments` keeps their order. If the last of them is drawn, all texts are left out together with
    probability `drop_caption`, and the streams that `drop_conditions` names from the media before it.
    """
    kind = medium_of(record)
    if not kind and "segments" not in record:
        return DocumentChoice()

    # Each decision has a draw of its own, so that changing one probability changes no other decision.
    def chance(draw: int) -> float:
        return scramble(*seed, draw) / 2**64

    caption, both = chance(1) >= config.drop_caption, chance(3) < config.both
    seen = kind in ("image", "video") or not kind
    mirror = seen and chance(2) < config.flip
    # Negative numbers, because the conditions draw with the numbers from 6 on, however many there are.
    shift = tuple(int(chance(draw) * (2 * config.shift + 1)) - config.shift for draw in (-2, -3)) if seen else (0, 0)
    conditions = enumerate(sorted(config.drop_conditions.items()), start=6)
    dropped = tuple(stream for draw, (stream, share) in conditions if chance(draw) < share)
    if not kind:
        variants = max(len(s.value) if isinstance(s.value, tuple) else 1 for s in record["segments"])
        return DocumentChoice(
            caption, True, mirror, dropped=dropped, null=config.null_caption, shift=shift,
            which=int(chance(-4) * variants), learned_turns=tuple(config.learned_turns),
        )  # fmt: skip
    if "caption" not in record:
        return DocumentChoice(False, True, mirror, both, shift=shift, label=caption)
    which = int(chance(-4) * len(record["captions"])) if "captions" in record else 0
    if kind == "image" and chance(4) < config.edit:
        edit = list(EDITS)[int(chance(5) * len(EDITS))]
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


def segments_of(record: Record, choice: DocumentChoice, frames: bool = False) -> tuple[RawSegment, ...]:
    """The segments of a record in the form that was chosen: the one form of all records.

    They are those that the record states; or a text; or a medium with its caption, the 'target' behind it, the
    'context' before it, or 'both'; or an example of editing: an image, what to do with it, and the result.

    Args:
      frames: whether a clip becomes its frames, images one after the other. Frames that are drawn are then read as
        well, because the next frame is drawn from them (a world model).
    """
    if "segments" in record:
        stated = [_chosen(segment, choice) for segment in with_roles(record["segments"], choice.learned_turns)]
        stated = _conditioned(stated, choice)
        return tuple(frame for segment in stated for frame in (_frames(segment) if frames else (segment,)))
    kind = medium_of(record)
    if not kind:
        return (RawSegment(TEXT, record["text"], "both"),)
    fields = {"label": int(record.get("label", -1)) if choice.label else -1, "encoded": "encoded" in record}
    drawn, read = ("both", "both") if choice.both else ("target", "context")
    medium = _chosen(RawSegment(kind, record[kind], drawn if choice.caption_first else read, **fields), choice)
    caption = record["captions"][choice.which] if "captions" in record else record.get("caption", "")
    # A text that is last is an answer: nothing reads it.
    role = "both" if choice.edit or choice.caption_first else "target"
    words = RawSegment(TEXT, choice.edit or str(caption), role, unseen="" if choice.caption else choice.null)
    if choice.edit:
        earlier = "both" if choice.draw_earlier else "context"
        before = dataclasses.replace(medium, role=earlier, dropped=choice.dropped)
        return before, words, dataclasses.replace(medium, value=EDITS[choice.edit](medium.value), role=drawn)
    shown = (medium,)
    if kind == "video" and frames:
        shown = _frames(dataclasses.replace(medium, role="both" if choice.caption_first else read))
    return (words, *shown) if choice.caption_first else (*shown, words)


def with_roles(stated: tuple[RawSegment, ...], learned_turns: tuple[str, ...]) -> tuple[RawSegment, ...]:
    """The segments of a record with their roles and losses, where it does not state them.

    A segment is learned unless it is in a turn that is not. A medium that is not learned is 'context', one that is
    learned is 'both', because what follows reads it; the last of a record is a 'target', because nothing follows. A
    text is 'both', or a 'target' if it is the last and learned.
    """
    found = []
    for number, segment in enumerate(stated, start=1):
        loss = segment.loss if segment.loss is not None else not segment.turn or segment.turn in learned_turns
        last = number == len(stated) and (loss or segment.kind != TEXT)
        role = "target" if last else "both"
        role = role if loss or segment.kind == TEXT else "context"
        found.append(dataclasses.replace(segment, role=segment.role or role, loss=loss))
    return tuple(found)


def _conditioned(stated: list[RawSegment], choice: DocumentChoice) -> list[RawSegment]:
    """Leaves out of a record whose last segment is drawn the conditions that the choice leaves out."""
    *before, last = stated
    if last.kind == TEXT or last.role == "context":
        return stated
    words, media = {"unseen": "" if choice.caption else choice.null}, {"dropped": choice.dropped}
    return [*(dataclasses.replace(s, **(words if s.kind == TEXT else media)) for s in before), last]


def _chosen(segment: RawSegment, choice: DocumentChoice) -> RawSegment:
    """A text with the variant, a picture or clip mirrored and moved, as the choice says."""
    value = segment.value
    if isinstance(value, tuple):
        return dataclasses.replace(segment, value=value[choice.which % len(value)])
    if segment.kind not in ("image", "video"):
        return segment
    if choice.mirror:
        value = value[..., ::-1, :]
    if any(choice.shift):
        value = moved(value, *choice.shift)
    return segment if value is segment.value else dataclasses.replace(segment, value=value)


def _frames(segment: RawSegment) -> tuple[RawSegment, ...]:
    if segment.kind != "video":
        return (segment,)
    role = "both" if segment.role == "target" else segment.role
    return tuple(dataclasses.replace(segment, kind="image", value=frame, role=role) for frame in segment.value)


def to_document(
    record: Record,
    choice: DocumentChoice,
    encode: Encode = as_pixels,
    keep_pixels: bool = False,
    frames: bool = False,
    tokenizer: Tokenizer = BYTES,
) -> Document:
    """Makes a record a document in the form that was chosen.

    Args:
      encode: the codecs.
      keep_pixels: whether images carry their pixels besides their latents.
      frames: see `segments_of`.
      tokenizer: makes ids of texts, and knows the chat template.
    """
    return encoded(segments_of(record, choice, frames), encode, keep_pixels, tokenizer)


def encoded(
    segments: tuple[RawSegment, ...],
    encode: Encode = as_pixels,
    keep_pixels: bool = False,
    tokenizer: Tokenizer = BYTES,
) -> Document:
    """Encodes the segments of a record; see `to_document`.

    Round each turn stand the texts of the tokenizer's chat template. What is before a turn is not learned; what is
    behind it is learned as the last segment of the turn is, so that the model learns to end its turns.
    """
    document: list[Segment] = []
    groups = [(turn, list(group)) for turn, group in itertools.groupby(segments, lambda segment: segment.turn)]
    for number, (turn, group) in enumerate(groups, start=1):
        content = [found for segment in group for found in _encoded(segment, encode, keep_pixels, tokenizer)]
        if turn and (chat := tokenizer.chat):
            opened = Segment(TEXT, chat.before(turn), weight=0.0)
            closed = Segment(TEXT, chat.after(turn, number == len(groups)), weight=_weight(group[-1]))
            content = [opened, *content, *[closed] * bool(len(closed.value))]
        document += content
    return tuple(document)


def _weight(segment: RawSegment) -> float:
    return segment.weight if segment.loss is not False else 0.0


def _encoded(segment: RawSegment, encode: Encode, keep_pixels: bool, tokenizer: Tokenizer) -> Document:
    """One segment; none for a text in whose place nothing stands. What stands in place of a text that is left out is
    'context': it is not learned."""
    weight = _weight(segment)
    if segment.kind == TEXT:
        ids = tokenizer.encode(segment.value)
        if not segment.unseen:
            return (Segment(TEXT, ids, segment.role, weight=weight),)
        ids = text.UNSEEN[segment.unseen](ids)
        return () if ids is None or not len(ids) else (Segment(TEXT, ids, "context", weight=weight),)
    value = segment_value(segment.value if segment.encoded else encode(segment.kind, segment.value))
    shown = pixel_latents(segment.value) if keep_pixels and not segment.encoded else None
    return (
        Segment(segment.kind, value, segment.role, segment.label, pixels=shown, dropped=segment.dropped, weight=weight),
    )
