"""The kernel distance between generated and real images: the squared maximum mean discrepancy of a cubic kernel.

The estimator is that of Binkowski et al. (arXiv 1801.01401, section 4): unbiased, so that it does not fall with the
number of images as a Frechet distance does, and may be negative. Theirs is taken in the features of the Inception
network and called KID; here any features may be given, so the number compares only with others in the same features.
"""

import numpy as np

from transfusion.errors import UsageError
from transfusion.evaluation.intervals import Score, jackknife


def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(x . y / F + 1)^3 of all pairs of features [N, F] and [M, F]: [N, M]."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def discrepancy(generated: np.ndarray, real: np.ndarray, both: np.ndarray) -> float:
    """The unbiased estimate of the squared discrepancy from the kernels of all pairs: [N, N], [M, M] and [N, M]."""
    n, m = both.shape
    within = (generated.sum() - np.trace(generated)) / (n * (n - 1)) + (real.sum() - np.trace(real)) / (m * (m - 1))
    return float(within - 2 * both.mean())


def _checked(*features: np.ndarray) -> list[np.ndarray]:
    given = [np.asarray(one, np.float64) for one in features]
    shapes = " and ".join(str(list(one.shape)) for one in given)
    if any(one.ndim != 2 for one in given) or len({one.shape[1] for one in given}) != 1 or not given[0].shape[1]:
        raise UsageError(f"features {shapes} cannot be compared: [N, F] of one F")
    if min(map(len, given)) < 2:
        raise UsageError(f"features {shapes}: a kernel distance needs at least 2 images of each")
    if not all(np.isfinite(one).all() for one in given):
        raise UsageError("a kernel distance needs finite features: the images hold NaN or infinity")
    return given


def kernel_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """The distance of features [N, F] and [M, F].

    Raises:
      UsageError: if they cannot be compared, or there are fewer than two of each.
    """
    generated, real = _checked(generated, real)
    return discrepancy(kernel(generated, generated), kernel(real, real), kernel(generated, real))


def kernel_score(generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, Score]:
    """The distance of generated [N, F] from real [M, F] features, and the floor, between two halves of the real ones.

    As `transfusion.evaluation.frechet.frechet_score`, but all images are used, as nothing depends on their number.
    Intervals: jackknife over the images of both sets, of which it leaves out the same share; the count is that of the
    smaller one.

    Raises:
      UsageError: if a set is too small, or the numbers of features differ.
    """
    generated, real = _checked(generated, real)
    if len(generated) < 4 or len(real) < 8:
        raise UsageError(f"{len(generated)} generated and {len(real)} real images: need at least 4 and 8")
    rng = np.random.default_rng(seed)
    halves = np.split(real[rng.permutation(len(real))][: len(real) // 2 * 2], 2)
    return {"distance": _score(generated, real, rng), "floor": _score(*halves, rng)}


def _score(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Score:
    """The distance with its interval."""
    tables = kernel(first, first), kernel(second, second), kernel(first, second)
    count, orders = min(len(first), len(second)), [rng.permutation(len(one)) for one in (first, second)]
    parts = [np.array_split(order, count) for order in orders]  # as many parts of each set as the smaller has images

    def of(kept: np.ndarray) -> float:
        a, b = (np.concatenate([part[i] for i in kept]) for part in parts)
        return discrepancy(tables[0][np.ix_(a, a)], tables[1][np.ix_(b, b)], tables[2][np.ix_(a, b)])

    return jackknife(of, count, seed=int(rng.integers(2**31)))
