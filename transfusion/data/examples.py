"""Makes a record an example: the tokens that packing packs, or a Bad that says why the record cannot be used."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transfusion.data import documents
from transfusion.data.config import Record
from transfusion.data.faults import RECORD_FAULTS, error_line
from transfusion.data.packing import Bad
from transfusion.data.segments import RawSegment
from transfusion.errors import PassingError, UsageError
from transfusion.sequence import TEXT, Document, SequenceSpec
from transfusion.sequence.rows import Expanded, expand
from transfusion.sequence.text import BYTES, Tokenizer


def make_example(
    record: Record,
    choice: documents.DocumentChoice,
    spec: SequenceSpec,
    encode: documents.Encode = documents.as_pixels,
    tokenizer: Tokenizer = BYTES,
    split_text: bool = True,
    truncate: bool = False,
) -> Expanded | Bad:
    """The tokens of a record, or why it cannot be used.

    Args:
      split_text: whether text-only documents may be longer than a row, because packing cuts them.
      truncate: whether the text of other documents that are too long is cut to what a row holds.

    Raises:
      PassingError: if storage cannot be reached. The record may be read later.
    """
    if "error" in record:
        return Bad(str(record["id"]), str(record["error"]))
    try:
        frames = "video" not in spec.layout
        segments = documents.segments_of(record, choice, frames)
        _check_kinds(segments, spec)
        document = documents.encoded(segments, encode, spec.reads_pixels, tokenizer)
        expanded = expand(document, spec)
        if truncate and _too_much(expanded, spec.budgets, split_text):
            expanded = _truncated(document, expanded, spec, tokenizer)
        if wrong := _too_much(expanded, spec.budgets, split_text):
            return Bad(str(record["id"]), _advice(wrong, expanded, spec.budgets, record, truncate))
        return expanded
    except PassingError:
        raise
    except RECORD_FAULTS as error:
        return Bad(str(record["id"]), error_line(error))


def _check_kinds(segments: Sequence[RawSegment], spec: SequenceSpec) -> None:
    """Raises UsageError if the model has no stream for a kind of segment."""
    for segment in segments:
        if segment.kind not in spec.kinds:
            known = ", ".join(spec.kinds)
            raise UsageError(f"this model has no stream for {segment.kind!r}: the kinds of its layout are {known}")


def _too_much(expanded: Expanded, budgets: Mapping[str, int], split_text: bool) -> list[str]:
    """The resources of which a document takes more than an empty row holds; none if packing may cut the document."""
    wrong = [name for name, count in expanded.cost.items() if count > budgets.get(name, 0)]
    return [] if wrong and split_text and expanded.split(budgets) is not None else wrong


def _advice(
    wrong: Sequence[str], expanded: Expanded, budgets: Mapping[str, int], record: Record, truncate: bool
) -> str:
    """One line that says what does not fit, and which fields to change."""
    parts, fields = [], []
    for name in wrong:
        stream, _, items = name.partition(":")
        what = "items" if items else "tokens"
        parts.append(f"takes {expanded.cost[name]} {what} of stream {stream!r}, a row holds {budgets.get(name, 0)}")
        fields.append(f"streams.{stream}.{'items' if items else 'budget'} to {expanded.cost[name]}")
    advice = f"{' and '.join(parts)}: raise {' and '.join(fields)}"
    if "caption" not in record and "text" in record:
        return f"{advice}, or set data.split_text=True"
    return advice if truncate or wrong != [TEXT] else f"{advice}, or set data.truncate=True"


def _truncated(document: Document, expanded: Expanded, spec: SequenceSpec, tokenizer: Tokenizer) -> Expanded:
    """The document with its longest text cut to what a row holds. It stays as it is if cutting does not help."""
    texts = [i for i, segment in enumerate(document) if segment.kind == "text"]
    if not texts:
        return expanded
    longest = max(texts, key=lambda i: len(document[i].value))
    streams = {run.stream for run in spec.runs(document[longest])}
    over = max(expanded.cost.get(name, 0) - spec.budgets[name] for name in streams)
    ids = whole_characters(document[longest].value, len(document[longest].value) - over, tokenizer)
    if over <= 0 or not len(ids):
        return expanded
    shorter = dataclasses.replace(document[longest], value=ids)
    document = (*document[:longest], shorter, *document[longest + 1 :])
    return dataclasses.replace(expand(document, spec), truncated=True)


def whole_characters(ids: np.ndarray, room: int, tokenizer: Tokenizer) -> np.ndarray:
    """The first `room` ids, or fewer if the last character would be cut in two."""
    room = max(room, 0)
    while room and tokenizer.decode(ids[:room]).endswith("\ufffd"):
        room -= 1
    return ids[:room]


def bytes_of(example: Expanded | Bad) -> int:
    """The bytes that an example takes in a cache."""
    if isinstance(example, Bad):
        return 500
    return 1000 + sum(array.nbytes + 200 for piece in example.pieces.values() for array in piece.values())
