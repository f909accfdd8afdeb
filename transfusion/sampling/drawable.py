"""The kinds of segments that a model can draw, and their runs of tokens, as the config's layout table gives them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from transfusion.errors import UsageError, nearest
from transfusion.sequence import Run, Segment, SequenceSpec, Stream
from transfusion.sequence.content import Spelled


@dataclasses.dataclass(frozen=True)
class Drawable:
    """A kind of segment that a model can draw.

    Attributes:
      kind: its name in the layout table.
      runs: the run that is drawn, as the last one, behind the runs that come before it in reading order.
      stream: the stream of the run that is drawn.
      spelled: whether it is drawn id by id in the text's vocabulary, and not by a stream of its own.
      opener_is_text: whether the opener is an ordinary token before the item. It is in the cache already when the item
        is drawn.
    """

    kind: str
    runs: tuple[Run, ...]
    stream: Stream
    spelled: bool
    opener_is_text: bool

    @property
    def run(self) -> Run:
        """The run that is drawn."""
        return self.runs[-1]

    @property
    def opener(self) -> int:
        """The id that begins a drawing."""
        return self.runs[0].opener


def drawables_of(spec: SequenceSpec) -> tuple[Drawable, ...]:
    """Finds the kinds of segments that a model with these tables can draw, in the order of its layout; () if it only
    writes.

    Raises:
      UsageError: if two kinds have the same opener, or runs that the decoder cannot draw.
    """
    kinds: dict[str, None] = {}
    for kind, role, runs in spec.entries:
        if role != "context" and runs and runs[0].opener >= 0 and any(_is_drawn(run, spec) for run in runs):
            kinds[kind] = None
    found = tuple(_drawable(kind, spec) for kind in kinds)
    openers: dict[int, str] = {}
    for drawn in found:
        other = openers.setdefault(drawn.opener, drawn.kind)
        if other != drawn.kind:
            raise UsageError(
                f"layout: {other} and {drawn.kind} have the same opener {drawn.opener}, so nothing says which of them "
                "begins: give each kind that is drawn an opener of its own"
            )
    return found


def chosen(drawables: Sequence[Drawable], kind: str) -> Drawable:
    """Returns the one of the kind that a prompt asks for; '' asks for the only one.

    Raises:
      UsageError: if there is no such kind, or several and none is named.
    """
    known = [drawn.kind for drawn in drawables]
    if not known:
        raise UsageError("this model draws no images: its layout has no run with an opener and a stream that is drawn")
    if kind and kind not in known:
        raise UsageError(f"this model draws no {kind}: it draws {', '.join(known)}{nearest(kind, known)}")
    if not kind and len(known) > 1:
        raise UsageError(f"this model draws {', '.join(known)}: say which, as in kind={known[0]!r}")
    return drawables[known.index(kind) if kind else 0]


def _drawable(kind: str, spec: SequenceSpec) -> Drawable:
    runs = _up_to_drawn(kind, spec)
    spelled = isinstance(spec.content(runs[-1]), Spelled)
    inside = runs[0].boundary == "inside" or spelled or spec.content(runs[0]).starts
    return Drawable(kind, runs, spec.streams[runs[-1].stream], spelled, not inside)


def _is_drawn(run: Run, spec: SequenceSpec) -> bool:
    return spec.content(run).sides > 0 and spec.streams[run.stream].objective != "none"


def _up_to_drawn(kind: str, spec: SequenceSpec) -> tuple[Run, ...]:
    """The runs of an item that is only drawn, up to the first one that is drawn."""
    runs = spec.runs(Segment(kind, np.zeros(0), "target"))
    last = next((i for i, run in enumerate(runs) if _is_drawn(run, spec)), None)
    if last is None:
        raise UsageError(f"layout {kind!r}: a segment that is only drawn, {kind}/target, has no run that is drawn")
    if runs[last].spelling.codes and (last or len(runs) > 1 or runs[0].closer < 0):
        raise UsageError(f"layout {kind!r}: what is drawn must be one run of codes, with a closer")
    if last and runs[last].opener >= 0 and runs[last].boundary == "outside":
        raise UsageError(f"layout {kind!r}: the first run opens a drawing, the noised run has no opener")
    return runs[: last + 1]
