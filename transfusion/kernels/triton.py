"""Attention on GPUs (Pallas, lowered to Triton): forward, and backward in two kernels without atomics.

The online softmax of FlashAttention (arXiv 2205.14135; backward as in arXiv 2307.08691, section 3.1). A program has one
block of one row and head, and visits the blocks of the plan's runs: first full ones, which need no mask, then partial
ones, which compare places in the reading order. Arrays are read where they lie, [B, L, H, K].

Shape letters: B rows, L queries, S keys, H heads, G key-value heads, R = H / G, K head size; n and m number the query
and key blocks, C classes of query streams.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu

from transfusion.kernels import derivatives, runs
from transfusion.kernels.derivatives import Kernels
from transfusion.kernels.kernel import Head, Kernel, Result
from transfusion.kernels.plan import Cut, Plan, plan
from transfusion.kernels.runs import Runs
from transfusion.kernels.triton_kernels import Sizes, forward, keys_backward, queries_backward, tangents
from transfusion.kernels.triton_tiles import width
from transfusion.sequence.masks import Intervals, Metadata, intervals


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a kernel is compiled: the tokens of its query and key blocks, warps of a program, stages of its pipeline."""

    q: int
    k: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes of the kernels: `queries` of the forward pass and of dq, which visit the same blocks; `dq` differs in
    warps and stages alone. `tangents` is that of forward mode."""

    queries: Shape
    dq: Shape
    keys: Shape
    tangents: Shape


# By the dtype, and by the most numbers of a head. Compiled for an H100, none keeps more than 48 bytes of a thread's
# registers in memory (`make gates`). In float32 the blocks of heads of more than 64 numbers are small for that, and
# some too small for the largest instructions of the tensor cores.
SHAPES: dict[str, dict[int, Shapes]] = {
    "bfloat16": {
        64: Shapes(Shape(128, 64, 4, 3), Shape(128, 64, 8, 2), Shape(64, 64, 4, 2), Shape(64, 64, 4, 2)),
        128: Shapes(Shape(128, 64, 8, 3), Shape(128, 64, 8, 2), Shape(32, 64, 4, 2), Shape(64, 32, 4, 2)),
        256: Shapes(Shape(128, 32, 8, 2), Shape(128, 32, 8, 2), Shape(16, 64, 8, 2), Shape(32, 32, 8, 2)),
    },
    "float32": {
        64: Shapes(Shape(128, 64, 8, 3), Shape(128, 64, 8, 2), Shape(32, 64, 4, 2), Shape(64, 32, 4, 2)),
        96: Shapes(Shape(128, 32, 8, 2), Shape(128, 32, 8, 2), Shape(16, 64, 8, 2), Shape(32, 32, 8, 2)),
        128: Shapes(Shape(128, 32, 8, 2), Shape(128, 32, 8, 2), Shape(32, 32, 8, 2), Shape(32, 32, 8, 2)),
        256: Shapes(Shape(32, 32, 8, 2), Shape(32, 32, 8, 2), Shape(32, 32, 8, 1), Shape(16, 16, 8, 1)),
    },
}
LARGEST = 256
"""The largest head size."""


def shapes_of(head: Head, queries: int) -> Shapes:
    """The shapes for such heads; blocks of a few queries, as of a decoder, are smaller."""
    size, dtype = head
    shapes = next(shapes for most, shapes in SHAPES[dtype].items() if size <= most)
    few = max(1 << (queries - 1).bit_length(), 16)
    if few >= shapes.queries.q:
        return shapes
    return dataclasses.replace(shapes, queries=dataclasses.replace(shapes.queries, q=few, warps=4))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Side:
    """What the programs of one side read: each has a block of `plan.q` or `plan.k`, and visits blocks of the other.

    Attributes:
      plan: the tokens in blocks.
      runs: which blocks to visit.
    """

    plan: Plan
    runs: Runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sides:
    """What all layers share. Each side has blocks of its own sizes; a compiler drops those of which no kernel runs."""

    queries: Side
    keys: Side
    tangents: Side
    shapes: Shapes = dataclasses.field(metadata={"static": True})


def sides(tokens: Intervals, q: Sequence[int], k: Sequence[int], shapes: Shapes) -> Sides:
    """Plans attention of queries in slices of the sizes `q` over keys in slices of the sizes `k`; see `plan.Cut`."""

    def side(shape: Shape, of_keys: bool) -> Side:
        made = plan(tokens, Cut(tuple(q), shape.q), Cut(tuple(k), shape.k))
        return Side(made, runs.of_keys(made) if of_keys else runs.of_queries(made))

    return Sides(side(shapes.queries, False), side(shapes.keys, True), side(shapes.tangents, False), shapes)


def plan_of(
    q: Metadata, k: Metadata, may: np.ndarray | None, q_slices: tuple[int, ...], k_slices: tuple[int, ...], head: Head
) -> Sides:
    """What all layers share; see `transfusion.kernels.kernel.Kernel`."""
    return sides(intervals(q, k, may), q_slices, k_slices, shapes_of(head, sum(q_slices)))


# --- calls ------------------------------------------------------------------------------------------------------------


def _call(kernel, side: Side, cut: Cut, arrays, specs, outputs, shape: Shape, grid, interpret: bool):
    """Runs a kernel whose programs have blocks of `cut`. Every array but the runs is given whole, a row and a head of
    it to a program, which reads its blocks from there: they begin wherever a slice does."""
    made, (rows, heads) = side.plan, grid
    whole, own = (lambda i, y, x: (0,)), (lambda i, y, x: (x, i, 0))
    tokens = [made.order, made.of, made.first]
    given = {
        "start": (jnp.asarray(cut.starts), pl.BlockSpec((cut.blocks,), whole)),
        "count": (jnp.asarray(cut.counts), pl.BlockSpec((cut.blocks,), whole)),
        **{str(n): (x, pl.BlockSpec((None, x.shape[1]), lambda i, y, x: (x, 0))) for n, x in enumerate(tokens)},
        "last": (made.last, pl.BlockSpec((None, *made.last.shape[1:]), lambda i, y, x: (x, 0, 0))),
        **{
            name: (x, pl.BlockSpec((None, None, x.shape[2]), own))
            for name, x in (("at", side.runs.at), ("jumps", side.runs.jumps), ("counts", side.runs.counts))
        },
    }
    sizes = Sizes(made.q, made.k, arrays[0].shape[-1])
    return pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        grid=(cut.blocks, heads, rows),
        in_specs=[*specs, *(spec for _, spec in given.values())],
        out_specs=[spec for _, spec in outputs],
        out_shape=[struct for struct, _ in outputs],
        compiler_params=gpu.CompilerParams(num_warps=shape.warps, num_stages=shape.stages),
        interpret=interpret,
        name=f"attention_{kernel.__name__}",
    )(*arrays, *(x for x, _ in given.values()))


def _specs(q: jax.Array, k: jax.Array, cached: bool = False) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Of queries, keys and the sums of softmax, for programs of a query head; a cache has keys [B, G, S, K]."""
    groups, length = k.shape[1:3] if cached else (k.shape[2], k.shape[1])
    share, numbers = q.shape[2] // groups, width(q.shape[3])
    of_cache = pl.BlockSpec((None, None, length, numbers), lambda i, y, x: (x, y // share, 0, 0))
    return (
        pl.BlockSpec((None, q.shape[1], None, numbers), lambda i, y, x: (x, 0, y, 0)),
        of_cache if cached else pl.BlockSpec((None, length, None, numbers), lambda i, y, x: (x, 0, y // share, 0)),
        pl.BlockSpec((None, None, q.shape[1]), lambda i, y, x: (x, y, 0)),
    )


def _run_forward(q, k, v, made: Sides, interpret: bool, cached: bool = False):
    (queries, keys, sums), (b, n, h, _) = _specs(q, k, cached), q.shape
    side = made.queries
    outputs = [(jax.ShapeDtypeStruct(q.shape, q.dtype), queries), (jax.ShapeDtypeStruct((b, h, n), jnp.float32), sums)]
    return _call(
        forward, side, side.plan.q, (q, k, v), (queries, keys, keys), outputs, made.shapes.queries, (b, h), interpret
    )


def _run_tangents(q, k, v, t_q, t_k, t_v, made: Sides, interpret: bool):
    (queries, keys, sums), (b, n, h, _) = _specs(q, k), q.shape
    side = made.tangents
    outputs = [(jax.ShapeDtypeStruct(q.shape, q.dtype), queries), (jax.ShapeDtypeStruct((b, h, n), jnp.float32), sums)]
    return _call(
        tangents, side, side.plan.q, (q, k, v, t_q, t_k, t_v), (queries, keys, keys) * 2, outputs * 2,
        made.shapes.tangents, (b, h), interpret,
    )  # fmt: skip


def _run_backward(q, k, v, made: Sides, out, lse, do, d_lse, interpret: bool):
    delta = jnp.einsum("bnhk,bnhk->bhn", out, do, preferred_element_type=jnp.float32) - d_lse
    (queries, keys, sums), (b, n, h, _), groups = _specs(q, k), q.shape, k.shape[2]
    arrays, side = (q, k, v, do, lse, delta), made.queries
    (dq,) = _call(
        queries_backward, side, side.plan.q, arrays, (queries, keys, keys, queries, sums, sums),
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), queries)], made.shapes.dq, (b, h), interpret,
    )  # fmt: skip
    # A program has one key-value head, and all query heads that read it.
    queries = pl.BlockSpec((None, n, h // groups, width(q.shape[3])), lambda j, y, x: (x, 0, y, 0))
    keys = pl.BlockSpec((None, k.shape[1], None, width(q.shape[3])), lambda j, y, x: (x, 0, y, 0))
    sums = pl.BlockSpec((None, h // groups, n), lambda j, y, x: (x, y, 0))
    outputs = [(jax.ShapeDtypeStruct(x.shape, x.dtype), keys) for x in (k, v)]
    dk, dv = _call(
        keys_backward, made.keys, made.keys.plan.k, arrays, (queries, keys, keys, queries, sums, sums), outputs,
        made.shapes.keys, (b, groups), interpret,
    )  # fmt: skip
    return dq, dk, dv


@functools.cache
def _kernels(interpret: bool) -> Kernels:
    return Kernels(
        *(functools.partial(run, interpret=interpret) for run in (_run_forward, _run_backward, _run_tangents))
    )


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, made: Sides, interpret: bool = False, one_pass: bool = False
) -> Result:
    """Attention under the rule of `masks.see`, and what merges it with that over other keys.

    Args:
      q: [B, L, H, K]; scaled by 1 / sqrt(K) here.
      k, v: [B, S, G, K].
      made: from `sides`.
      interpret: whether the kernels run in an interpreter, on any machine.
      one_pass: see `transfusion.kernels.derivatives.attend`.
    """
    return derivatives.attend(_kernels(interpret), q, k, v, made, one_pass)


def read(q: jax.Array, k: jax.Array, v: jax.Array, made: Sides, interpret: bool = False) -> Result:
    """The same for keys and values [B, G, S, K], as a cache has them, without gradients."""
    return _run_forward(q, k, v, made, interpret, cached=True)


KERNEL = Kernel("gpu", LARGEST, plan_of, attend, functools.partial(attend, one_pass=True), read)
