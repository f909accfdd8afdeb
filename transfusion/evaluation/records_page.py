"""The parts of a page that shows records: the table of segments, and the tokens with what is learned of them."""

import itertools
from collections.abc import Sequence

import numpy as np

from transfusion.data.segments import RawSegment
from transfusion.evaluation import page
from transfusion.sequence import TEXT, SequenceSpec
from transfusion.sequence.rows import Expanded
from transfusion.sequence.text import NAMES, Tokenizer

LONGEST = 2000  # characters of a text that are shown
LEGEND = "Tokens that are learned stand on colour, lighter where their weight is below 1; all others are only read."
_STYLE = (
    "white-space: pre-wrap; overflow-wrap: anywhere; font: 0.85rem/1.9 ui-monospace, Menlo, 'DejaVu Sans Mono', "
    "monospace; margin: 10px 0 6px"
)


def segments_table(segments: Sequence[RawSegment]) -> str:
    """One row for each segment: its kind, role, turn, weight, and what it holds."""
    rows = []
    for number, segment in enumerate(segments, start=1):
        weight = 0.0 if segment.loss is False else segment.weight
        left_out = ", ".join(filter(None, (segment.unseen, *segment.dropped)))
        rows.append(
            (
                str(number), page.escape(segment.kind), page.escape(segment.role), page.escape(segment.turn),
                f"{weight:g}", _content(segment) + (f"<br>left out: {page.escape(left_out)}" if left_out else ""),
            )
        )  # fmt: skip
    return page.html_table(("", "kind", "role", "turn", "loss", "content"), rows)


def _content(segment: RawSegment) -> str:
    value = segment.value
    if isinstance(value, str):
        cut = value if len(value) <= LONGEST else f"{value[:LONGEST]} ... ({len(value)} characters)"
        return page.escape(cut)
    if value.dtype == np.uint8 and value.ndim in (3, 4) and not segment.encoded:
        frames = value[None] if value.ndim == 3 else value[:8]
        return "".join(page.thumbnail(frame, f"{segment.kind} {list(value.shape)}", 96) for frame in frames)
    what = "codes" if segment.encoded else f"{segment.rate} samples a second" if segment.rate else "numbers"
    return page.escape(f"{what}, {value.dtype} {list(value.shape)}, from {value.min():g} to {value.max():g}")


def learned(example: Expanded, spec: SequenceSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place in the reading order the number of its stream, its id (-1: none), and the weight with which the
    token there is learned.

    The weight of a prediction is stored at the token that predicts. In text that is the one before.
    """
    streams, ids = np.full(example.length, -1), np.full(example.length, -1)
    weight = np.zeros(example.length + 1)
    for number, name in enumerate(spec.streams):
        if name not in example.pieces:
            continue
        piece, content = example.pieces[name], spec.streams[name].content
        order = piece["order"]
        streams[order] = number
        if "tokens" in piece:
            ids[order] = piece["tokens"]
        np.maximum.at(weight, order + (not content.sides or content.starts), piece["loss_weight"])
    return streams, ids, weight[:-1]


def tokens(example: Expanded, spec: SequenceSpec, tokenizer: Tokenizer) -> str:
    """The tokens in reading order: text as text, items as a box with their number, special tokens by name."""
    streams, ids, weight = learned(example, spec)
    names = {tokenizer.id(number): name.upper() for name, number in NAMES.items()}
    names |= {number: mark for mark, number in tokenizer.named.items()}
    text, parts = list(spec.streams).index(TEXT), []

    def look(place: int) -> tuple:
        stream, number = streams[place], int(ids[place])
        special = number if stream == text and (number in names or number >= tokenizer.size) else -1
        return int(stream), special, float(weight[place])

    for (stream, special, factor), places in itertools.groupby(range(example.length), look):
        found = list(places)
        if special >= 0:
            shown, boxed = names.get(special, f"#{special}") * len(found), True
        elif stream == text:
            shown, boxed = tokenizer.decode(ids[found].astype(np.int32)), False
        else:
            shown, boxed = f"{list(spec.streams)[stream]} x {len(found)}", True
        parts.append(_token(shown, factor, boxed))
    return f'<div style="{_STYLE}">{"".join(parts)}</div>'


def _token(shown: str, weight: float, boxed: bool) -> str:
    colour = f"background: color-mix(in srgb, var(--c2) {20 + 30 * min(weight, 1):.0f}%, transparent)" if weight else ""
    box = "border: 1px solid var(--rule); border-radius: 4px; padding: 0 4px; margin: 0 2px; font-size: 0.75rem"
    title = f"learned with weight {weight:g}" if weight else "only read"
    style = "; ".join(filter(None, (colour, box if boxed else "")))
    return f'<span style="{style}" title="{title}">{page.escape(shown)}</span>'


def counts(example: Expanded) -> str:
    """How many tokens of each stream the document has, and how many predictions are learned."""
    said = [
        f"{len(piece['order'])} {name} ({int((piece['loss_weight'] > 0).sum())} learned)"
        for name, piece in example.pieces.items()
    ]
    return f'<p class="note">Tokens: {page.escape(", ".join(said))}</p>'
