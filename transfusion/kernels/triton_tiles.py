"""What the attention kernels for GPUs share: heads in parts, and how a program visits blocks.

A head is taken in parts whose sizes are powers of two, as Triton wants arrays to be: 96 numbers as 64 and 32, 72 as 64
and half of 16. Products have the precision of `jax.default_matmul_precision`, as those of JAX.

Shape letters: T and U tokens of blocks, K head size, L tokens of a row, R query heads of a key-value head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu

from transfusion.kernels.runs import block_at


def parts(size: int) -> list[tuple[int, int, int]]:
    """The parts of a head: the first number of each, its size (a power of two, at least 16), and how much of it is."""
    if size < 16:
        return [(0, 16, size)]
    first = 1 << (size.bit_length() - 1)
    rest = size - first
    return [(0, first, first)] + ([(first, max(1 << (rest - 1).bit_length(), 16), rest)] if rest else [])


def mask_of(tokens: Any, part: int, there: int) -> Any:
    """Which numbers of a part exist, [T, part], of `tokens` bool [T, 1] that exist; None: all."""
    if there == part:
        return tokens
    numbers = jax.lax.broadcasted_iota(jnp.int32, (1, part), 1) < there
    return numbers if tokens is None else tokens & numbers


def width(size: int) -> int:
    """The numbers of a head that its parts cover, with those that do not exist."""
    first, part, _ = parts(size)[-1]
    return first + part


def load(ref: Any, size: int, at: Any, tokens: Any = None, head: tuple = ()) -> list[jax.Array]:
    """The parts of the tokens `at` of [L, K], zeros where `tokens` bool [T] is false; of a `head` of [L, R, K]."""
    found, rows = [], None if tokens is None else tokens[:, None]
    for first, part, there in parts(size):
        mask = mask_of(rows, part, there)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (at.size, part))
        other = None if mask is None else 0.0
        found.append(gpu.load(ref.at[(at, *head, pl.ds(first, part))], mask=mask, other=other))
    return found


def store(ref: Any, size: int, at: Any, tokens: jax.Array, values: Sequence[jax.Array]) -> None:
    for (first, part, there), value in zip(parts(size), values, strict=True):
        mask = jnp.broadcast_to(mask_of(tokens[:, None], part, there), (at.size, part))
        gpu.store(ref.at[at, pl.ds(first, part)], value.astype(ref.dtype), mask=mask)


def products(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> jax.Array:
    """[T, K] times [U, K] -> [T, U]."""
    return sum(gpu.dot(a, b.T) for a, b in zip(x, y, strict=True))


def add(sums: Sequence[jax.Array], weights: jax.Array, y: Sequence[jax.Array]) -> list[jax.Array]:
    """Adds weights [T, U] times y [U, K] to the sums [T, K]."""
    return [old + gpu.dot(weights.astype(part.dtype), part) for old, part in zip(sums, y, strict=True)]


def zeros(n: int, size: int) -> list[jax.Array]:
    return [jnp.zeros((n, part), jnp.float32) for _, part, _ in parts(size)]


def before(start: jax.Array, n: int, end: int) -> jax.Array:
    """Which of n tokens from `start` on lie before `end`."""
    return start + jax.lax.iota(jnp.int32, n) < end


def visit(steps: Any, jumps: Any, counts: Any, body: Callable[..., Any], start: Any) -> Any:
    """Visits the full blocks of an outer block's runs, then the partial ones; `body` gets the number of each."""
    full, needed, at, by = counts[0], counts[1], steps[...], jumps[...]

    def turn(step: jax.Array, carry: Any, partial: bool) -> Any:
        return body(block_at(step, at, by), carry, partial=partial)

    carry = jax.lax.fori_loop(0, full, functools.partial(turn, partial=False), start)
    return jax.lax.fori_loop(full, needed, functools.partial(turn, partial=True), carry)
