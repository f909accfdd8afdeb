"""The grammar of items that are written id by id: a table-driven automaton says which id may come next.

Shape letters: B rows, V vocabulary, S states, K classes of ids.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.sampling.choose import NEVER
from transfusion.sequence import Run
from transfusion.sequence.spelling import CODE, Grid

OUTSIDE, OPENED = range(2)  # states: outside of any item, where every id may stand, and behind an opener


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """An automaton over classes of ids, so that its table does not grow with the vocabulary.

    Attributes:
      classes: int32 [V], the class of each id. All codes are one class; those that are never in an item are class 0.
      following: int32 [S, K], the state after an id of a class; -1: no id of this class may come next.
      longest: how many ids the longest item has, its closer included.
    """

    classes: np.ndarray
    following: np.ndarray
    longest: int

    def masked(self, state: jax.Array, logits: jax.Array) -> jax.Array:
        """Sets the logits [B, V] of ids that may not come next in the states int32 [B] to `NEVER`."""
        allowed = jnp.asarray(self.following)[state] >= 0
        return jnp.where(allowed[:, self.classes], logits, NEVER)

    def after(self, state: jax.Array, ids: jax.Array) -> jax.Array:
        """Returns the states after the ids int32 [B]."""
        return jnp.asarray(self.following)[state, jnp.asarray(self.classes)[ids]]


def grammar_of(run: Run, grids: Sequence[Grid], vocabulary: int) -> Grammar:
    """Builds the automaton of a run's items, which have one of the sizes `grids`, from their opener to their closer.

    Raises:
      UsageError: if nothing tells several sizes apart.
    """
    spelling, closer = run.spelling, run.closer
    if len(grids) > 1 and not spelling.size:
        raise UsageError(f"spelling: without `size` nothing says which of the sizes {tuple(grids)} an item has")
    symbols: dict[int, int] = {}
    edges: list[dict[int, int]] = [{}, {}]  # of each state: the class of an id -> the state after it
    longest = 0
    for grid in grids:
        state, ids = OPENED, (*spelling.template(grid), closer)
        longest = max(longest, len(ids))
        for symbol in ids[:-1]:
            kind = symbols.setdefault(symbol, len(symbols) + 1)
            if kind not in edges[state]:
                edges[state][kind] = len(edges)
                edges.append({})
            state = edges[state][kind]
        edges[state][symbols.setdefault(closer, len(symbols) + 1)] = OUTSIDE
    classes = np.zeros(vocabulary, np.int32)
    for symbol, kind in symbols.items():
        where = slice(spelling.first, spelling.first + spelling.codes) if symbol == CODE else symbol
        classes[where] = kind
    following = np.full((len(edges), len(symbols) + 1), -1, np.int32)
    following[OUTSIDE] = OUTSIDE
    for state, row in enumerate(edges):
        for kind, after in row.items():
            following[state, kind] = after
    return Grammar(classes, following, longest)
