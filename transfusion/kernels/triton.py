"""Attention on GPUs (Pallas, lowered to Triton): forward, and backward in two kernels without atomics.

The online softmax of FlashAttention (arXiv 2205.14135; backward as in arXiv 2307.08691, section 3.1). A program has one
block of one row and head, and visits the blocks of the plan's list: first full ones, which need no mask, then partial
ones, which compare places in the reading order. Arrays are read where they lie, [B, L, H, K].

A head is taken in parts whose sizes are powers of two, as Triton wants arrays to be: 96 numbers as 64 and 32, 72 as 64
and half of 16. Products have the precision of `jax.default_matmul_precision`, as those of JAX.

Shape letters: B rows, L queries, S keys, H heads, G key-value heads, R = H / G, K head size; n and m number the query
and key blocks, C classes of query streams.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu

from transfusion.kernels.plan import Cut, Lists, Plan, plan
from transfusion.sequence.masks import Intervals

UNSEEN = -1e30
"""The score of a pair that is not allowed, and the log-sum-exp of a query that sees nothing: finite, so that no
difference of two is NaN."""
LOG2E = math.log2(math.e)


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
    warps and stages alone."""

    queries: Shape
    dq: Shape
    keys: Shape


# By the largest head size. Chosen so that no kernel keeps registers in memory (see `docs/how_it_works.md`).
SHAPES: dict[int, Shapes] = {
    64: Shapes(Shape(128, 64, 4, 3), Shape(128, 64, 8, 2), Shape(64, 64, 4, 2)),
    128: Shapes(Shape(128, 64, 8, 3), Shape(128, 64, 8, 2), Shape(64, 64, 4, 2)),
    256: Shapes(Shape(64, 32, 4, 2), Shape(64, 32, 4, 2), Shape(32, 32, 4, 2)),
}
LARGEST = max(SHAPES)


def shapes_of(size: int) -> Shapes:
    """The shapes for heads of this size."""
    return SHAPES[min(limit for limit in SHAPES if size <= limit)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Side:
    """What the programs of one side read: each has a block of `plan.q` or `plan.k`, and visits blocks of the other.

    Attributes:
      plan: the tokens in blocks.
      lists: which blocks to visit.
      starts: int32 [B, n, m], the first token of each block of `lists`.
    """

    plan: Plan
    lists: Lists
    starts: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sides:
    """What all layers share. The two sides have blocks of their own sizes."""

    queries: Side
    keys: Side


def sides(tokens: Intervals, q: Sequence[int], k: Sequence[int], shapes: Shapes) -> Sides:
    """Plans attention of queries in slices of the sizes `q` over keys in slices of the sizes `k`; see `plan.Cut`."""
    of_queries = plan(tokens, Cut(tuple(q), shapes.queries.q), Cut(tuple(k), shapes.queries.k))
    of_keys = plan(tokens, Cut(tuple(q), shapes.keys.q), Cut(tuple(k), shapes.keys.k))
    visits = of_queries.of_queries(), of_keys.of_keys()
    starts = jnp.asarray(of_queries.k.starts)[visits[0].blocks], jnp.asarray(of_keys.q.starts)[visits[1].blocks]
    return Sides(Side(of_queries, visits[0], starts[0]), Side(of_keys, visits[1], starts[1]))


# --- inside the kernels -----------------------------------------------------------------------------------------------


def _parts(size: int) -> list[tuple[int, int, int]]:
    """The parts of a head: the first number of each, its size (a power of two, at least 16), and how much of it is."""
    first = 1 << (size.bit_length() - 1)
    parts = [(0, max(first, 16), min(first, size))]
    if size > first >= 16:
        rest = size - first
        parts.append((first, max(1 << (rest - 1).bit_length(), 16), rest))
    elif size > first:
        parts = [(0, 16, size)]
    return parts


def _mask(tokens: Any, part: int, there: int) -> Any:
    """Which numbers of a part exist, [T, part], of `tokens` bool [T, 1] that exist; None: all."""
    if there == part:
        return tokens
    numbers = jax.lax.broadcasted_iota(jnp.int32, (1, part), 1) < there
    return numbers if tokens is None else tokens & numbers


def _width(size: int) -> int:
    """The numbers of a head that its parts cover, with those that do not exist."""
    first, part, _ = _parts(size)[-1]
    return first + part


def _load(ref: Any, size: int, at: Any, tokens: Any = None) -> list[jax.Array]:
    """The parts of the tokens `at` of [L, K], zeros where `tokens` bool [T] is false."""
    parts, rows = [], None if tokens is None else tokens[:, None]
    for first, part, there in _parts(size):
        mask = _mask(rows, part, there)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (at.size, part))
        other = None if mask is None else 0.0
        parts.append(gpu.load(ref.at[at, pl.ds(first, part)], mask=mask, other=other))
    return parts


def _store(ref: Any, size: int, at: Any, tokens: jax.Array, values: Sequence[jax.Array]) -> None:
    for (first, part, there), value in zip(_parts(size), values, strict=True):
        mask = jnp.broadcast_to(_mask(tokens[:, None], part, there), (at.size, part))
        gpu.store(ref.at[at, pl.ds(first, part)], value.astype(ref.dtype), mask=mask)


def _products(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> jax.Array:
    """[T, K] times [U, K] -> [T, U]."""
    return sum(gpu.dot(a, b.T) for a, b in zip(x, y, strict=True))


def _add(sums: Sequence[jax.Array], weights: jax.Array, y: Sequence[jax.Array]) -> list[jax.Array]:
    """Adds weights [T, U] times y [U, K] to the sums [T, K]."""
    return [old + gpu.dot(weights.astype(part.dtype), part) for old, part in zip(sums, y, strict=True)]


def _zeros(n: int, size: int) -> list[jax.Array]:
    return [jnp.zeros((n, part), jnp.float32) for _, part, _ in _parts(size)]


def _tokens(start: jax.Array, n: int, end: int) -> jax.Array:
    """Which of n tokens from `start` on lie before `end`."""
    return start + jax.lax.iota(jnp.int32, n) < end


def _visit(counts: Any, body: Callable[..., Any], start: Any) -> Any:
    """Visits the full blocks of a list, then the partial ones."""
    full, needed = counts[0], counts[1]
    carry = jax.lax.fori_loop(0, full, functools.partial(body, partial=False), start)
    return jax.lax.fori_loop(full, needed, functools.partial(body, partial=True), carry)


# --- the kernels ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a kernel knows when it is compiled: its blocks, how many queries and keys there are, and the head size."""

    tq: int
    tk: int
    queries: int
    keys: int
    head: int

    @property
    def scale(self) -> float:
        return self.head**-0.5

    @property
    def scale2(self) -> float:
        """The same in powers of two, which are what GPUs compute."""
        return self.scale * LOG2E


def _forward(q, k, v, start, count, order, of, first, last, blocks, starts, counts, out, lse, *, sizes: Sizes):
    i, size, tq, tk = pl.program_id(0), sizes.head, sizes.tq, sizes.tk
    at = pl.ds(start[i], tq)
    own = jax.lax.iota(jnp.int32, tq) < count[i]
    mine, places, number = _load(q, size, at, own), order[pl.ds(i * tq, tq)], of[i]

    def body(step, carry, partial):
        top, total, sums = carry
        begin = starts[step]
        there = _tokens(begin, tk, sizes.keys) if partial else None
        keys = pl.ds(begin, tk)
        scores = _products(mine, _load(k, size, keys, there)) * sizes.scale2
        if partial:
            near = pl.ds(blocks[step] * tk, tk)
            seen = (first[near][None] <= places[:, None]) & (places[:, None] <= last[number, near][None])
            scores = jnp.where(seen, scores, UNSEEN)
        new = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp2(scores - new[:, None])
        shrink = jnp.exp2(top - new)
        sums = _add([x * shrink[:, None] for x in sums], weights, _load(v, size, keys, there))
        return new, total * shrink + weights.sum(-1), sums

    # The first maximum lies above the score of what is not seen, so that weights of unseen keys are zero, not one.
    begin = (jnp.full((tq,), UNSEEN / 10, jnp.float32), jnp.zeros((tq,), jnp.float32), _zeros(tq, size))
    top, total, sums = _visit(counts, body, begin)
    sees = total > 0
    total = jnp.where(sees, total, 1.0)
    _store(out, size, at, own, [jnp.where(sees[:, None], x / total[:, None], 0.0) for x in sums])
    gpu.store(lse.at[at], jnp.where(sees, (top + jnp.log2(total)) / LOG2E, UNSEEN), mask=own)


def _dq(q, k, v, do, lse, delta, start, count, order, of, first, last, blocks, starts, counts, dq, *, sizes: Sizes):
    i, size, tq, tk = pl.program_id(0), sizes.head, sizes.tq, sizes.tk
    at = pl.ds(start[i], tq)
    own = jax.lax.iota(jnp.int32, tq) < count[i]
    mine, given, places, number = _load(q, size, at, own), _load(do, size, at, own), order[pl.ds(i * tq, tq)], of[i]
    norm = gpu.load(lse.at[at], mask=own, other=0.0) * LOG2E
    mean = gpu.load(delta.at[at], mask=own, other=0.0)

    def body(step, sums, partial):
        begin = starts[step]
        there = _tokens(begin, tk, sizes.keys) if partial else None
        keys = pl.ds(begin, tk)
        theirs = _load(k, size, keys, there)
        weights = jnp.exp2(_products(mine, theirs) * sizes.scale2 - norm[:, None])
        if partial:
            near = pl.ds(blocks[step] * tk, tk)
            seen = (first[near][None] <= places[:, None]) & (places[:, None] <= last[number, near][None])
            weights = jnp.where(seen, weights, 0.0)
        change = weights * (_products(given, _load(v, size, keys, there)) - mean[:, None])
        return _add(sums, change, theirs)

    sums = _visit(counts, body, _zeros(tq, size))
    _store(dq, size, at, own, [x * sizes.scale for x in sums])


def _dkv(
    q, k, v, do, lse, delta, start, count, order, of, first, last, blocks, starts, counts, dk, dv, *, sizes: Sizes
):
    j, size, tq, tk = pl.program_id(0), sizes.head, sizes.tq, sizes.tk
    at = pl.ds(start[j], tk)
    own = jax.lax.iota(jnp.int32, tk) < count[j]
    keys, values, near = _load(k, size, at, own), _load(v, size, at, own), pl.ds(j * tk, tk)
    begins = first[near]

    def body(step, carry, head, partial):
        dk, dv = carry
        begin = starts[step]
        rows = pl.ds(begin, tq)
        there = _tokens(begin, tq, sizes.queries) if partial else None
        other = 0.0 if partial else None
        theirs, given = (_load(x.at[:, head], size, rows, there) for x in (q, do))
        norm, mean = (gpu.load(x.at[head, rows], mask=there, other=other) for x in (lse, delta))
        weights = jnp.exp2(_products(keys, theirs) * sizes.scale2 - (norm * LOG2E)[None])
        if partial:
            number = blocks[step]
            places = order[pl.ds(number * tq, tq)]
            seen = (begins[:, None] <= places[None]) & (places[None] <= last[of[number], near][:, None])
            weights = jnp.where(seen, weights, 0.0)
        dv = _add(dv, weights, given)
        return _add(dk, weights * (_products(values, given) - mean[None]), theirs), dv

    def of_head(head, carry):
        return _visit(counts, functools.partial(body, head=head), carry)

    sums = jax.lax.fori_loop(0, q.shape[1], of_head, (_zeros(tk, size), _zeros(tk, size)))
    _store(dk, size, at, own, [x * sizes.scale for x in sums[0]])
    _store(dv, size, at, own, sums[1])


# --- calls ------------------------------------------------------------------------------------------------------------


def _call(kernel, side: Side, cut: Cut, arrays, specs, outputs, shape: Shape, grid, interpret: bool):
    """Runs a kernel whose programs have blocks of `cut`. Every array but the lists is given whole, a row and a head of
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
            for name, x in (("blocks", side.lists.blocks), ("starts", side.starts), ("counts", side.lists.counts))
        },
    }
    sizes = Sizes(made.q.size, made.k.size, made.q.length, made.k.length, arrays[0].shape[-1])
    return pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        grid=(cut.blocks, heads, rows),
        in_specs=[*specs, *(spec for _, spec in given.values())],
        out_specs=[spec for _, spec in outputs],
        out_shape=[struct for struct, _ in outputs],
        compiler_params=gpu.CompilerParams(num_warps=shape.warps, num_stages=shape.stages),
        interpret=interpret,
        name=f"attention{kernel.__name__}",
    )(*arrays, *(x for x, _ in given.values()))


def _specs(q: jax.Array, k: jax.Array) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Of queries, keys and the sums of softmax, for programs of a query head."""
    share, width = q.shape[2] // k.shape[2], _width(q.shape[3])
    return (
        pl.BlockSpec((None, q.shape[1], None, width), lambda i, y, x: (x, 0, y, 0)),
        pl.BlockSpec((None, k.shape[1], None, width), lambda i, y, x: (x, 0, y // share, 0)),
        pl.BlockSpec((None, None, q.shape[1]), lambda i, y, x: (x, y, 0)),
    )


def _run_forward(q, k, v, made: Sides, shapes: Shapes, interpret: bool):
    (queries, keys, sums), (b, n, h, _) = _specs(q, k), q.shape
    side = made.queries
    outputs = [(jax.ShapeDtypeStruct(q.shape, q.dtype), queries), (jax.ShapeDtypeStruct((b, h, n), jnp.float32), sums)]
    return _call(
        _forward, side, side.plan.q, (q, k, v), (queries, keys, keys), outputs, shapes.queries, (b, h), interpret
    )


def _run_backward(q, k, v, made: Sides, shapes: Shapes, interpret: bool, lse, delta, do):
    (queries, keys, sums), (b, n, h, _), groups = _specs(q, k), q.shape, k.shape[2]
    arrays, side = (q, k, v, do, lse, delta), made.queries
    (dq,) = _call(
        _dq, side, side.plan.q, arrays, (queries, keys, keys, queries, sums, sums),
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), queries)], shapes.dq, (b, h), interpret,
    )  # fmt: skip
    # A program has one key-value head, and all query heads that read it.
    queries = pl.BlockSpec((None, n, h // groups, _width(q.shape[3])), lambda j, y, x: (x, 0, y, 0))
    keys = pl.BlockSpec((None, k.shape[1], None, _width(q.shape[3])), lambda j, y, x: (x, 0, y, 0))
    sums = pl.BlockSpec((None, h // groups, n), lambda j, y, x: (x, y, 0))
    outputs = [(jax.ShapeDtypeStruct(x.shape, x.dtype), keys) for x in (k, v)]
    dk, dv = _call(
        _dkv, made.keys, made.keys.plan.k, arrays, (queries, keys, keys, queries, sums, sums), outputs, shapes.keys,
        (b, groups), interpret,
    )  # fmt: skip
    return dq, dk, dv


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q: jax.Array, k: jax.Array, v: jax.Array, made: Sides, shapes: Shapes, interpret: bool = False):
    """Attention under the rule of `masks.see`, and what merges it with that over other keys.

    Args:
      q: [B, L, H, K]; scaled by 1 / sqrt(K) here.
      k, v: [B, S, G, K].
      made: from `sides`, with the same shapes.
      shapes: how the kernels are compiled, see `shapes_of`.
      interpret: whether the kernels run in an interpreter, on any machine.

    Returns:
      (outputs [B, L, H, K], zeros of a query that sees nothing; log-sum-exp of the scores, float32 [B, H, L], `UNSEEN`
      where there are none).
    """
    return _run_forward(q, k, v, made, shapes, interpret)


def _attend_forward(q, k, v, made, shapes, interpret):
    out, lse = _run_forward(q, k, v, made, shapes, interpret)
    return (out, lse), (q, k, v, made, out, lse)


def _attend_backward(shapes, interpret, saved, given):
    q, k, v, made, out, lse = saved
    do, d_lse = given
    delta = jnp.einsum("bnhk,bnhk->bhn", out, do, preferred_element_type=jnp.float32) - d_lse
    return *_run_backward(q, k, v, made, shapes, interpret, lse, delta, do), None


attend.defvjp(_attend_forward, _attend_backward)
