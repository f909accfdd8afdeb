"""Conversions between an array of a released checkpoint and one of ours, each with its exact inverse.

PyTorch stores the matrix of a linear map as [out, in] and the kernel of a convolution as OIHW; ours are [in, out], with
heads as axes of their own, and HWIO.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Convert:
    """Two functions between an array of theirs and one of ours, each the exact inverse of the other.

    Attributes:
      to_ours, to_theirs: the functions.
      axis: the axis of ours along which rows of theirs become a slice, so that a large array can be converted some rows
        at a time. None converts only whole arrays.
      step: rows of theirs for each index along the axis.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]
    axis: int | None = None
    step: int = 1


def same(*shape: int) -> Convert:
    """The array as it is.

    With a `shape`, a vector of theirs is an array of ours (biases of heads [H * K] -> [H, K]).
    """
    if not shape:
        return Convert(lambda x: x, lambda y: y, 0)
    return Convert(lambda x: x.reshape(-1, *shape[1:]), lambda y: y.reshape(-1), 0, math.prod(shape[1:]))


def reshaped(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Convert:
    """The same numbers in the same order under another shape."""
    return Convert(lambda x: x.reshape(ours), lambda y: y.reshape(theirs))


def matrix(*out_shape: int) -> Convert:
    """[out, in] -> [in, *out_shape], or [in, out] without a shape."""
    rest = out_shape[1:]
    return Convert(
        lambda x: x.T.reshape(x.shape[1], -1, *rest), lambda y: y.reshape(y.shape[0], -1).T, 1, math.prod(rest)
    )


def matrix_from(*in_shape: int) -> Convert:
    """[out, in] -> [*in_shape, out], such as an attention's output projection [D, H * K] -> [H, K, D]."""
    return Convert(lambda x: x.T.reshape(*in_shape, -1), lambda y: y.reshape(-1, y.shape[-1]).T, len(in_shape))


def conv() -> Convert:
    """OIHW -> HWIO."""
    return Convert(lambda x: x.transpose(2, 3, 1, 0), lambda y: y.transpose(3, 2, 0, 1), 3)


def pointwise() -> Convert:
    """The kernel of a convolution of one pixel [out, in, 1, 1] -> [in, out]."""
    return Convert(lambda x: x[:, :, 0, 0].T, lambda y: y.T[:, :, None, None], 1)


def conv3d() -> Convert:
    """OITHW -> THWIO."""
    return Convert(lambda x: x.transpose(2, 3, 4, 1, 0), lambda y: y.transpose(4, 3, 0, 1, 2), 4)


def patches(patch: int) -> Convert:
    """A convolution [D, C, P, P] whose stride is its size -> [P * P * C, D], for patches in (y, x, c) order."""
    return Convert(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda y: y.reshape(patch, patch, -1, y.shape[1]).transpose(3, 2, 0, 1),
        1,
    )


def permuted(order: Sequence[int], then: Convert) -> Convert:
    """Reorders rows before `then`: its row i is row `order[i]` of theirs (for chunks in another order, or another
    RoPE).
    """
    order, back = np.asarray(order), np.argsort(order)
    return Convert(lambda x: then.to_ours(x[order]), lambda y: then.to_theirs(y)[back])


def negated(then: Convert) -> Convert:
    """Changes the sign, for a last layer that predicts noise - data where ours predicts data - noise."""
    return Convert(lambda x: -then.to_ours(x), lambda y: then.to_theirs(-y), then.axis, then.step)
