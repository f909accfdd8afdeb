"""The Frechet distance between generated and real images in a classifier's features.

The formula is that of Heusel et al. (arXiv 1706.08500, eq. 6), but the features are those of a classifier of ours and
not of the Inception network. So the number compares models that are evaluated here, with the same classifier and the
same number of images. It is not the published metric of that paper and must not be called by its name.
"""

import numpy as np

from transfusion.errors import UsageError
from transfusion.evaluation.intervals import Score, jackknife


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [F] and the unbiased covariance [F, F] of features [N, F], in float64.

    Raises:
      UsageError: if there are fewer than two rows or a value is not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UsageError(f"a Frechet distance needs features [N >= 2, F], not {list(features.shape)}")
    if not np.isfinite(features).all():
        raise UsageError("a Frechet distance needs finite features: the images hold NaN or infinity")
    centre = features.mean(0)
    centred = features - centre
    return centre, centred.T @ centred / (len(features) - 1)


def square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix [F, F].

    It is computed by eigenvalues: sets smaller than F have singular covariances, for which Newton-type roots diverge.
    Eigenvalues that rounding made negative count as 0.
    """
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def gaussian_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared feature units, never negative."""
    root = square_root(cov1)
    # tr (C1 C2)^(1/2) = tr (R C2 R)^(1/2) with R = C1^(1/2), which is symmetric.
    inner = root @ cov2 @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return max(float(distance), 0.0)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance of Gaussians fitted to features [N, F] and [M, F]. It falls with N, so compare equal N only."""
    return gaussian_distance(*moments(first), *moments(second))


def frechet_score(generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, Score]:
    """The distance of generated [N, F] from real [M, F] features, and the floor that perfect images would reach.

    The real set is split at random into two halves. The distance is that of n generated images from n images of the
    first half; the floor is that of n images of the second half from the same ones. n = min(N, M // 2) for both,
    because the bias of the distance depends on n. Intervals: jackknife over the generated images (for the floor, those
    of the second half), with the images of the first half held fixed.

    Returns:
      {'distance': score, 'floor': score}; the count is n.

    Raises:
      UsageError: if a set is too small, or the numbers of features differ.
    """
    generated, real = np.asarray(generated), np.asarray(real)
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise UsageError(f"features {list(generated.shape)} and {list(real.shape)} cannot be compared: [N, F] of one F")
    n = min(len(generated), len(real) // 2)
    if n < 4:
        raise UsageError(f"{len(generated)} generated and {len(real)} real images: need at least 4 and 8")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(real))
    reference = moments(real[order[:n]])
    held_out = real[order[n : 2 * n]]
    chosen = generated[rng.permutation(len(generated))[:n]]

    def distance_of(features: np.ndarray) -> Score:
        result = jackknife(lambda keep: gaussian_distance(*moments(features[keep]), *reference), n, seed=seed)
        return {**result, "low": max(result["low"], 0.0)}

    return {"distance": distance_of(chosen), "floor": distance_of(held_out)}
