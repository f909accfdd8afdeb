"""Drawing an item id by id in the text's vocabulary, by its grammar, guided by up to two prompts more.

The caches of all prompts advance together. What is drawn stays in the first one: nothing is encoded again.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.cache import KeyValues
from transfusion.sampling.grammar import OPENED, OUTSIDE, Grammar
from transfusion.sampling.job import Job, Prefix
from transfusion.sampling.layout import Layout, Place, lay
from transfusion.sampling.state import DRAWING, State, append, put_ids, text_keys
from transfusion.sequence import TEXT, Document, Segment
from transfusion.sequence.rows import Expanded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branch:
    """One more prompt about to draw; see `State`."""

    cache: KeyValues
    used: jax.Array
    place: Place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawing:
    """What the loop carries: the state, the other prompts, and where in the grammar the rows stand, int32 [B]."""

    state: State
    others: tuple[Branch, ...]
    at: jax.Array


def _begin(state: State, others: Sequence[Prefix | None], layout: Layout, grammar: Grammar) -> Drawing:
    """The rows that wait stand behind their opener, which is not in the caches yet."""
    rows, branches = state.mode == DRAWING, []
    state = dataclasses.replace(state, pending=jnp.where(rows, layout.opener, state.pending))
    for prefix in filter(None, others):
        used = jnp.full(rows.shape, prefix.cache.metadata.order.shape[1], jnp.int32)
        branches.append(Branch(prefix.cache.grown(grammar.longest + 1), used, prefix.place))
    return Drawing(state, tuple(branches), jnp.where(rows, OPENED, OUTSIDE).astype(jnp.int32))


def draw(job: Job, grammar: Grammar, state: State) -> State:
    """One item for each row that waits; its closer is pending, the rest is in the cache.

    Args:
      job: its prefix is that of the state; its `plan` is that of `transfusion.sampling.codes`.
    """
    model, layout, plan = job.model, job.layout, job.plan

    def step(drawing: Drawing, part: Expanded) -> Drawing:
        rows, state = drawing.at != OUTSIDE, drawing.state
        (name,) = part.pieces
        content, time, branches, logits = {name: state.pending[:, None]}, jnp.ones(len(rows)), [], []
        for branch in (state, *drawing.others):
            inputs = lay(part, layout.spec, branch.place, rows, content, time)
            branch, encoded = append(model, branch, part, inputs, rows)
            branches.append(branch)
            logits.append(model.head(name, encoded[name])[:, 0])
        state, *others = branches
        allowed = grammar.masked(drawing.at, job.guidance.of_logits(logits))
        ids = job.choice.choose(allowed, text_keys(job.keys, state.count), plan.temperature, plan.top_p)
        state = dataclasses.replace(put_ids(state, ids, rows), pending=jnp.where(rows, ids, state.pending))
        return Drawing(state, tuple(others), jnp.where(rows, grammar.after(drawing.at, ids), OUTSIDE))

    drawing = _begin(state, (job.without_text, job.without_images), layout, grammar)
    waits = drawing.at != OUTSIDE
    if layout.run.stream != TEXT:  # the opener is text, what follows is not
        drawing = step(drawing, layout.token)
    drawing = jax.lax.while_loop(lambda d: (d.at != OUTSIDE).any(), lambda d: step(d, layout.code), drawing)
    return dataclasses.replace(drawing.state, drawn=drawing.state.drawn + waits)


def document(layout: Layout, ids: np.ndarray) -> Document:
    """The ids [n] put out by a row as segments."""
    segments, ids = [], np.asarray(ids, np.int32)
    while len(ids):
        opened = ids[0] == layout.opener
        edges = np.flatnonzero(ids == (layout.run.closer if opened else layout.opener))
        end = edges[0] if len(edges) else len(ids)
        if opened:
            segments.append(Segment(layout.kind, layout.run.spelling.parse(ids[1:end]), "context"))
        else:
            segments.append(Segment("text", ids[:end]))
        ids = ids[end + opened :]
    return tuple(segments)
