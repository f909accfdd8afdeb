"""What the attention kernels for TPUs share: the plan as they read it, and how a step of the grid finds its blocks.

Every kernel runs along a flat list of the needed pairs of blocks, see `transfusion.kernels.visits`. Blocks in which
every pair of tokens is allowed are not masked. Softmaxes are computed with base 2, because the exponential of base e
costs a product more.

Shape letters: B rows; N query tokens of a row and M key tokens, in whole blocks; T tokens of a block; H heads, G
key-value heads, K head size; C classes of query streams.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transfusion.kernels.plan import Cut, Plan
from transfusion.kernels.visits import MASKED, Visits, inner, outer, visits

LANES = 128  # numbers in a row of a register
LOG2E = math.log2(math.e)
UNSEEN = -1e30  # the score of a pair that is not allowed, and the log-sum-exp of a query that sees nothing
LOWEST = -1e29  # where the maximum starts: above such scores, so that their weights are 0, and not 1
ROWS_DOT_ROWS = (((1,), (1,)), ((), ()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """The plan of all rows of a device, joined, in the form in which the kernels read it.

    Attributes:
      by_query, by_key: the pairs of blocks, whose outer blocks are those of queries or of keys.
      of: int32 [query blocks], the class of each.
      order: int32 [1, N].
      first, last: int32 [1, M] and [C, 1, M].
      q, k: how the rows of queries and of keys are cut.
    """

    by_query: Visits
    by_key: Visits
    of: jax.Array
    order: jax.Array
    first: jax.Array
    last: jax.Array
    q: Cut = dataclasses.field(metadata={"static": True})
    k: Cut = dataclasses.field(metadata={"static": True})


def tokens(plan: Plan) -> Tokens:
    """Joins the rows of a plan, whose blocks must be whole registers."""
    last = plan.last.swapaxes(0, 1)
    return Tokens(
        by_query=visits(plan.kinds),
        by_key=visits(plan.kinds.swapaxes(1, 2)),
        of=plan.of.ravel(),
        order=plan.order.reshape(1, -1),
        first=plan.first.reshape(1, -1),
        last=last.reshape(len(last), 1, -1),
        q=plan.q,
        k=plan.k,
    )


# --- what all kernels share -------------------------------------------------------------------------------------------


def column(row: jax.Array) -> jax.Array:
    """Turns numbers [1, T] into [T, LANES], each repeated along its row: the form that meets scores [T, ...]."""
    return jnp.broadcast_to(row, (LANES, row.shape[-1])).T


def widen(x: jax.Array, n: int) -> jax.Array:
    """Repeats [T, LANES] along the rows: [T, n]."""
    return jnp.tile(x, (1, -(-n // LANES)))[:, :n]


def of_head(x: Any, tokens: int, block: Any, head: Any) -> tuple:
    """An input or output [B, H, L, K] of which a step reads or writes the tokens of one block and one head.

    Args:
      x: the array, or its form.
      tokens: tokens of a block.
      block, head: functions of what an index gets; blocks are numbered over all rows.
    """
    blocks = x.shape[2] // tokens

    def index(*at):
        number = block(*at)
        return jax.lax.div(number, blocks), head(*at), jax.lax.rem(number, blocks), 0

    return x, (None, None, tokens, x.shape[3]), index


def numbers_of_head(x: Any, tokens: int, block: Any, head: Any) -> tuple:
    """The same for numbers [B, H, 1, L], one per token."""
    blocks = x.shape[3] // tokens

    def index(*at):
        number = block(*at)
        return jax.lax.div(number, blocks), head(*at), 0, jax.lax.rem(number, blocks)

    return x, (None, None, 1, tokens), index


def dot(x: jax.Array, y: jax.Array, axes: Any = (((1,), (0,)), ((), ()))) -> jax.Array:
    """A product of matrices in float32. Arrays in float32 are multiplied as such, not in one pass of bfloat16."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def once_if(entry: jax.Array, flag: int, more: jax.Array | bool = True) -> Any:
    """Runs the decorated function if an entry has a flag, and `more` holds."""
    return pl.when(((entry & flag) != 0) & more)


def add_allowed(entry: jax.Array, add: Callable[[jax.Array], None], x: jax.Array, seen: Any, unseen: float) -> None:
    """Adds the numbers x [T, U] of the pairs of two blocks: as they are, or as an entry says, `unseen` where `seen()`
    is false."""
    pl.when((entry & MASKED) == 0)(lambda: add(x))
    pl.when((entry & MASKED) != 0)(lambda: add(jnp.where(seen(), x, unseen)))


def sees(orders: Any, first: Any, last: Any) -> jax.Array:
    """Whether queries, of which `orders` [T, LANES] has the places, see the keys of a block: bool [T, U]."""
    place = widen(orders[...], first.shape[-1])
    return (first[...] <= place) & (place <= last[...])


def call(
    kernel: Any,
    visits: Visits,
    of: jax.Array,
    grid: tuple,
    ins: Sequence[tuple],
    outs: Sequence[tuple],
    scratch: Sequence[Any],
    *,
    name: str,
    interpret: bool,
) -> Any:
    """Runs a kernel along a list. `grid` is around it; `ins` and `outs` are (array or its form, block, index).

    An index gets the numbers of the grid, and then the list of entries and the classes of the query blocks.
    """
    specs = [[pl.BlockSpec(block, index) for _, block, index in side] for side in (ins, outs)]
    run = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2, grid=grid, in_specs=specs[0], out_specs=specs[1], scratch_shapes=list(scratch)
        ),
        out_shape=[form for form, _, _ in outs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) + ("arbitrary",) * (len(grid) - 1)),
        interpret=interpret,
        name=name,
    )
    return run(visits.entries, of, *(array for array, _, _ in ins))


def rule(tokens: Tokens) -> list:
    """The inputs `order`, `first` and `last` of a kernel that goes along the keys of a query block."""
    return [
        (tokens.order, (1, tokens.q.size), lambda h, s, e, of: (0, outer(e[s]))),
        (tokens.first, (1, tokens.k.size), lambda h, s, e, of: (0, inner(e[s]))),
        (tokens.last, (None, 1, tokens.k.size), lambda h, s, e, of: (of[outer(e[s])], 0, inner(e[s]))),
    ]
