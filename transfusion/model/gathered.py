"""Products of tokens with matrices that are split over devices: gathered to multiply, their gradients scattered.

This is what XLA should do by itself. On GPUs it does. On TPUs libtpu 0.0.42 often has every device receive the whole
sum of a gradient, of which the device cuts its own part, and so twice as much is sent. `experiments/pod_plans` has the
matrices of which it was seen; what decides it is not documented. Here the sum is asked for as it is meant. Where a
group is all devices of a torus of two or three axes, it is still sent whole.
"""

from typing import Any

import jax

from transfusion.sharding import RULES, fitting, parts, per_device

LANES = 128  # numbers in a row of the tiles in which TPUs hold arrays


def gathers(x: jax.Array, matrix: jax.Array, at: int) -> bool:
    """Whether `gathered_product` can be used, and pays, which it does not for the few tokens of a sampler's step."""
    if parts("embed") == 1 or parts("mlp") > 1 or x.ndim != 3 or x.shape[0] * x.shape[1] < min(matrix.shape):
        return False
    return not (x.shape[0] % parts("batch") or x.shape[1] % parts("tokens") or matrix.shape[at] % parts("embed"))


def gathered_product(x: jax.Array, matrix: jax.Array, at: int) -> jax.Array:
    """The product [B, N, out] of tokens x [B, N, in] and a matrix [in, out] whose axis `at` is split as "embed" is."""

    def local(x: jax.Array, part: jax.Array) -> jax.Array:
        whole = _gathered(part if at == 0 else part.T)
        product = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), whole, (((1,), (at,)), ((), ())))
        return product.reshape(*x.shape[:2], -1)

    tokens = fitting(x.shape, "batch", "tokens", None)
    split = fitting(matrix.shape, *("embed" if axis == at else None for axis in (0, 1)))
    return per_device(local, (tokens, split), tokens)(x, matrix)


def _gathered(part: jax.Array) -> jax.Array:
    """Gathers a matrix [in, out] from the parts [in / n, out] of n devices; the transpose sums, and scatters the parts.

    Parts are scattered as rows of `LANES` numbers, behind an axis that counts the devices: of what was tried, the form
    that libtpu 0.0.42 kept for each of the matrices.
    """
    names = RULES["embed"]

    def gather(_, part: jax.Array) -> jax.Array:
        return jax.lax.all_gather(part, names, axis=0, tiled=True)

    def scatter(_, change: jax.Array) -> jax.Array:
        lanes = LANES if part.size % LANES == 0 else part.shape[1]
        apart = change.reshape(-1, part.size // lanes, lanes)
        return jax.lax.psum_scatter(apart, names, scatter_dimension=0, tiled=True).reshape(part.shape)

    return jax.custom_derivatives.linear_call(gather, scatter, (), part)


def keeps(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: all but gathered matrices are kept for the backward pass, which gathers them again.

    Kept, the matrices of all layers would lie whole on every device.
    """
    return primitive.name != "linear_call"
