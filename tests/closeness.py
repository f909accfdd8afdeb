"""When two computed results count as equal: one rule for all tests."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.config import TransformerConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Segment
from transfusion.tasks import SequenceTask


def assert_close(
    actual: Any,
    expected: Any,
    operations: int,
    dtype: Any = np.float32,
    largest: float | None = None,
    note: str = "",
) -> None:
    """Asserts that two results are equal up to the rounding of `operations` operations, one after the other.

    Two programs that both are right give different bits. A processor with wider registers adds in another order, one
    with fused multiply-add rounds once where others round twice, and compilers have different polynomials for exp.
    Every operation rounds its result by at most half of `eps`, relative to that result. So n operations in sequence
    move a number by at most about n eps of the largest number that took part. Usually they move it by sqrt(n) eps, as
    roundings go up and down; the rest of n eps is left for what a network multiplies its errors by. A wrong mask, a
    swapped weight or a dropped term moves a result by parts of its size, thousands of times as far:
    tests/test_closeness.py shows that this rule tells the two apart.

    The bound is relative to the largest number of the whole array. An entry near zero is the difference of larger
    ones, and their rounding is all that it may hold.

    Args:
      actual, expected: arrays, lists as such, numbers, or trees of them, which are compared leaf by leaf.
      operations: how many follow one another on the way from what both results share: n for a sum of n terms, and see
        `trunk_operations`.
      dtype: in which the less exact one of the two was computed.
      largest: the largest number on the way, where results are small differences of larger ones, or their quotients;
        default: the largest one of each array of `expected`.
      note: what is compared, for the message.
    """
    ours, theirs = (jax.tree.flatten(x, is_leaf=lambda x: isinstance(x, list)) for x in (actual, expected))
    assert ours[1] == theirs[1], f"{note} differ in structure: {ours[1]} and {theirs[1]}"
    for number, (one, other) in enumerate(zip(ours[0], theirs[0], strict=True)):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape or not other.shape, f"{note} differ in shape: {one.shape}, not {other.shape}"
        if not one.size:
            continue
        scale = np.abs(other).max() if largest is None else largest
        assert scale < 1e20, f"{note} leaf {number}: beside {scale:.2g}, which a mask may stand for, all else is close"
        bound = operations * float(jnp.finfo(dtype).eps) * scale
        error = np.abs(one - other)
        worst = np.unravel_index(np.argmax(error), error.shape)
        found, wanted = one[worst], np.broadcast_to(other, one.shape)[worst]
        # Not `error > bound`, as NaN must fail.
        assert error.max() <= bound, (
            f"{note} leaf {number} at {[int(i) for i in worst]}: {found} is not {wanted}: "
            f"the difference {error[worst]:.2g} is more than {bound:.2g}, {operations} roundings of {scale:.2g}"
        )


def trunk_operations(model: TransformerConfig, length: int) -> int:
    """Operations in sequence of a forward pass over rows of `length` tokens.

    In each layer two norms, the projections into and out of heads, scores, softmax, its weighted sum, and the
    feed-forward layer follow one another, and each is a sum; in the end the last norm and the output's projection do.
    A pass and its gradient have three times as many, a drawing as many per step and prediction.
    """
    width, heads = model.width, model.heads * model.size
    layer = 4 * width + model.size + 2 * length + heads + model.hidden
    return model.layers * layer + 2 * width


def drawing_operations(task: SequenceTask, sampler: SamplerConfig | None = None) -> int:
    """Operations in sequence of a row's forward pass through all trunks, or, with a sampler, of a whole drawing.

    Each step computes up to three predictions and extrapolates between them, and what was drawn is read again.
    """
    trunks = [task.model, *(stage.trunk for stage in task.model.stages.values())]
    length = sum(stream.budget for stream in task.spec.streams.values())
    passes = 1 if sampler is None else 3 * sampler.steps
    return passes * sum(trunk_operations(trunk, length) for trunk in trunks)


def assert_same(one: Sequence[Segment], other: Sequence[Segment], operations: int) -> None:
    """Asserts that two results of a decoder have the same kinds and ids, and close values; equal with 0 operations."""
    assert [segment.kind for segment in one] == [segment.kind for segment in other]
    for a, b in zip(one, other, strict=True):
        assert a.value.dtype == b.value.dtype
        exact = not np.issubdtype(a.value.dtype, np.floating)
        assert_close(a.value, b.value, 0 if exact else operations, note=a.kind)
