"""The summary that a notebook shows of a run: a few lines that fit a screen."""

from typing import Any

from transfusion.errors import UsageError
from transfusion.model.unified import parameter_count
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.drawing import DRAWINGS
from transfusion.sequence import TEXT

STREAMS = 4  # the most streams that are shown
WIDTH = 100


def summary(run: Any) -> str:
    """Summarizes a `transfusion.api.Trained` in at most ten lines of at most `WIDTH` characters."""
    model, sampling = run.experiment.model, run.experiment.sampling
    streams = list(run.spec.streams.items())
    rows = [("model", f"{model.layers} layers of width {model.width}, {model.heads} heads")]
    rows += [
        (name, f"{stream.objective}, {stream.content.words}, {stream.budget} tokens in a row")
        for name, stream in streams[:STREAMS]
    ]
    if len(streams) > STREAMS:
        rows.append(("...", f"and {len(streams) - STREAMS} streams more"))
    codecs = dict.fromkeys(run.experiment.codec_of(kind).kind for kind in run.spec.kinds if kind != TEXT)
    rows += [("codec", ", ".join(codecs) or run.experiment.codec.kind), ("draws", _draws(run, sampling))]
    known = [kind for kind in run.spec.kinds if run.spec.reads(kind)]
    rows.append(("reads", ", ".join(known)))
    head = f"{type(run).__name__}({run.workdir!r}) at step {run.step}, {parameter_count(run.params):,} parameters"
    lines = [head, *(f"  {name:<8} {words}" for name, words in rows)]
    return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines)


def _draws(run: Any, sampling: Any) -> str:
    try:
        drawables = drawables_of(run.spec)
    except UsageError as error:
        return str(error)
    if not drawables:
        return f"nothing: it writes {TEXT}"
    ways = [(drawn, sampling.of_kind(drawn.kind)) for drawn in drawables]
    words = [f"{drawn.kind}: {DRAWINGS[drawn.stream.objective].words.format(config=own)}" for drawn, own in ways]
    return f"{'; '.join(words)}, guidance {sampling.guidance:g}"
