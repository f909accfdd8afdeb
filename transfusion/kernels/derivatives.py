"""One attention for `jax.grad` and `jax.jvp`, made of the kernels of a platform.

JAX knows functions with their own reverse mode, which `jax.jvp` refuses, and functions with their own forward mode, of
which JAX derives the reverse one. A kernel needs both. So the forward mode is defined here, as a linear function of the
tangents, and that function says by itself what its transpose is: the backward kernels.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What one platform computes. Arrays are as its kernels lay them out; `plan` is a pytree of whole numbers.

    Attributes:
      forward: (q, k, v, plan) -> the outputs, and the log-sum-exp of the scores of each query.
      backward: (q, k, v, plan, outputs, log-sum-exp, gradients of these two) -> the gradients of q, k and v.
      tangents: (q, k, v, tangents of q, of k, of v, plan) -> the outputs, log-sum-exp, and the tangents of both.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    tangents: Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]]


def attend(
    kernels: Kernels, q: jax.Array, k: jax.Array, v: jax.Array, plan: Any, one_pass: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention that can be differentiated in reverse mode, in forward mode, and in reverse over forward mode.

    Reverse over forward mode is what MeanFlow (arXiv 2505.13447, equation 10) and sCM need: `jax.grad` of a loss in
    which `jax.jvp` gives a target. The gradient must not flow through the tangents, as it does not where the target is
    behind `jax.lax.stop_gradient`. There is no kernel for that; gradients which do flow through them become NaN.

    Args:
      kernels: those of a platform.
      q, k, v: as the kernels want them.
      plan: which tokens see which.
      one_pass: takes outputs and tangents from one kernel. Without it, `jax.jvp` runs the forward kernel besides,
        because JAX does not say whether it will run the tangents, or transpose them for a gradient. With it,
        `jax.grad` works only around a `jax.jvp`, and JAX refuses a plain one.

    Returns:
      (outputs, log-sum-exp of the scores).
    """
    return (_attend_in_one_pass if one_pass else _attend)(kernels, q, k, v, plan)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(kernels, q, k, v, plan):
    return kernels.forward(q, k, v, plan)


@partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(kernels, primals, tangents):
    results = _attend(kernels, *primals)
    return results, _tangents(kernels, *primals, *results, *_moving(tangents[:3]))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend_in_one_pass(kernels, q, k, v, plan):
    return kernels.forward(q, k, v, plan)


@partial(_attend_in_one_pass.defjvp, symbolic_zeros=True)
def _attend_in_one_pass_jvp(kernels, primals, tangents):
    results = _pair(kernels, *primals, *_moving(tangents[:3]))
    return results[:2], results[2:]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair(kernels, q, k, v, plan, *tangents):
    """Outputs and tangents; each tangent of q, k and v may be None."""
    every = (jnp.zeros_like(x) if t is None else t for x, t in zip((q, k, v), tangents, strict=True))
    return kernels.tangents(q, k, v, *every, plan)


@partial(_pair.defjvp, symbolic_zeros=True)
def _pair_jvp(kernels, primals, tangents):
    results = _pair(kernels, *primals)
    moved = _tangents(kernels, *primals[:4], *results[:2], *_moving(tangents[:3]))
    return results, (*moved, *_poison(results[2:], tangents))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tangents(kernels, q, k, v, plan, out, lse, *tangents):
    """The tangents of the results for those of q, k and v, any of which may be None."""
    moves = [t is not None for t in tangents]

    def forwards(given, moving):
        (*qkv, plan, _, _), moving = given, iter(moving)
        every = [next(moving) if moves else jnp.zeros_like(x) for x, moves in zip(qkv, moves, strict=True)]
        return kernels.tangents(*qkv, *every, plan)[2:]

    def backwards(given, gradients):
        return list(compress(kernels.backward(*given, *gradients), moves))

    return linear_call(forwards, backwards, (q, k, v, plan, out, lse), list(compress(tangents, moves)))


@partial(_tangents.defjvp, symbolic_zeros=True)
def _tangents_jvp(kernels, primals, tangents):
    results = _tangents(kernels, *primals)
    return results, _poison(results, tangents)


def _moving(tangents):
    """Tangents as arrays, or None where they are zero by construction."""
    return [None if isinstance(t, SymbolicZero) else t for t in tangents]


def _poison(like, tangents):
    """Stands for derivatives without a kernel: a gradient that flows through them becomes NaN, and zeros stay."""
    moving = [t for t in jax.tree.leaves(tangents) if not isinstance(t, SymbolicZero)]

    def forwards(_, total):
        return tuple(jnp.full_like(x, jnp.nan) for x in like)

    def backwards(_, gradients):
        flows = jnp.array([jnp.any(gradient != 0) for gradient in gradients]).any()
        return jnp.where(flows, jnp.nan, 0.0)

    return linear_call(forwards, backwards, (), sum(jnp.sum(t, dtype=jnp.float32) for t in moving))
