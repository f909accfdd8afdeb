"""The kind of segment that a model can draw, and its runs of tokens, as the config's layout table gives them."""

import dataclasses

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence import Run, Segment, SequenceSpec, Stream
from transfusion.sequence.content import Spelled


@dataclasses.dataclass(frozen=True)
class Drawable:
    """The one kind of segment that a model can draw.

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


def drawable_of(spec: SequenceSpec) -> Drawable | None:
    """Finds the kind of segment that a model with these tables can draw; None if it only writes.

    Raises:
      UsageError: if there are several kinds, or runs that the decoder cannot draw.
    """
    kinds = {}
    for kind, role, runs in spec.entries:
        if role != "context" and runs and runs[0].opener >= 0 and any(_is_drawn(run, spec) for run in runs):
            kinds[kind] = True
    if len(kinds) > 1:
        raise UsageError(f"the decoder draws one kind of segment, but the layout has {', '.join(kinds)}")
    if not kinds:
        return None
    (kind,) = kinds
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
