"""Scores with their uncertainty: {'value', 'low', 'high', 'count'} is a value, its interval and the sample size."""

import math
from collections.abc import Callable

import numpy as np
import scipy  # loads scipy.stats, which takes a second, where it is first used

from transfusion.errors import UsageError

Score = dict[str, float]


def score(value: float, low: float, high: float, count: int) -> Score:
    """A score in the form in which this library reports all scores."""
    return {"value": float(value), "low": float(low), "high": float(high), "count": int(count)}


def wilson(successes: int, count: int, confidence: float = 0.95) -> Score:
    """The share of successes with Wilson's interval (1927), which holds near 0 and 1, where the normal one collapses.

    Raises:
      UsageError: if there is nothing to count or successes are not within 0..count.
    """
    if count < 1 or not 0 <= successes <= count:
        raise UsageError(f"{successes} successes of {count}: a share needs at least one sample")
    interval = scipy.stats.binomtest(int(successes), int(count)).proportion_ci(confidence, method="wilson")
    return score(successes / count, interval.low, interval.high, count)


def mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = mean,
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Score:
    """A statistic of `values` [N, ...] with its percentile-bootstrap interval over N (Efron 1979), fixed by the seed.

    (`scipy.stats.bootstrap` takes the columns of a table for samples of their own, where a row is one unit here.)

    Pass one row for each independent unit: if a prompt has several images, one row per prompt and not per image.

    Raises:
      UsageError: if there are no values.
    """
    values = np.asarray(values)
    if values.ndim < 1 or len(values) < 1:
        raise UsageError("a bootstrap interval needs at least one value")
    rng, n = np.random.default_rng(seed), len(values)
    draws = [float(statistic(values[rng.integers(0, n, n)])) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    return score(statistic(values), np.quantile(draws, tail), np.quantile(draws, 1 - tail), n)


def jackknife(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    groups: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
) -> Score:
    """A smooth statistic of the samples 0..count-1 with its delete-a-group jackknife interval (Shao & Wu 1989).

    Use it for distances between distributions, which the bootstrap biases upwards because it repeats samples.
    `statistic` gets the indices [n] of the samples that are kept.

    Raises:
      UsageError: if there are fewer samples than two.
    """
    groups = min(groups, count)
    if groups < 2:
        raise UsageError(f"a jackknife interval needs at least 2 samples, not {count}")
    order = np.random.default_rng(seed).permutation(count)
    parts = [statistic(np.sort(np.delete(order, np.s_[i::groups]))) for i in range(groups)]
    half = scipy.stats.norm.ppf(0.5 + confidence / 2) * math.sqrt((groups - 1) * np.var(parts))
    value = statistic(np.arange(count))
    return score(value, value - half, value + half, count)
