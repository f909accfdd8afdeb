"""What pairs of runs with the same seeds say about a difference.

With three seeds a bootstrap over seeds alone is too narrow: its interval never leaves the range of the three
differences, which holds the true one only three times in four. So the interval is Student's over the paired
differences, widened to the bootstrap's (over seeds, and over prompts where values by prompt are there) where that one
is wider.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

CONFIDENCE, POWER = 0.95, 0.8


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference with its interval, over `count` pairs.

    Attributes:
      seen: the smallest difference that so many runs of this spread would have seen, with a chance of 80 %, as
        different from 0 (or from a threshold).
    """

    value: float
    low: float
    high: float
    count: int
    seen: float


def difference(
    pairs: Sequence[float], by_prompt: np.ndarray | None = None, seed: int = 0, own: float | None = None
) -> Difference:
    """The mean of paired differences with its 95 % interval.

    Args:
      pairs: a difference for each seed; it may be infinite, for what was never reached.
      by_prompt: float [seeds, prompts], differences of which `pairs` are the means.
      own: half of the interval, for values at a floor or a ceiling, whose spread says nothing.
    """
    values = np.asarray(pairs, np.float64)
    count, tail = len(values), (1 - CONFIDENCE) / 2
    value = float(np.mean(values))
    if count < 2:  # nothing says how much seeds differ
        return Difference(value, -math.inf, math.inf, count, math.inf)
    draws = bootstrap(values[:, None] if by_prompt is None else by_prompt, seed)
    low, high = (float(_quantile(draws, q)) for q in (tail, 1 - tail))
    if not np.isfinite(values).all():
        finite = values[np.isfinite(values)]
        return Difference(value, float(finite.min()) if len(finite) else math.inf, math.inf, count, math.inf)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, 1 - tail)) * error
    largest = max(error, float(np.std(draws)))
    if own is not None:
        half, largest = own, own / float(stdtrit(count - 1, 1 - tail))
    seen = float(stdtrit(count - 1, 1 - tail) + stdtrit(count - 1, POWER)) * largest
    return Difference(value, min(low, value - half), max(high, value + half), count, seen)


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 4000) -> np.ndarray:
    """Means [resamples] of values [seeds, prompts] of which seeds and prompts are drawn anew, with the same prompts for
    all seeds."""
    rng, (rows, columns) = np.random.default_rng(seed), values.shape
    chosen = rng.integers(0, rows, (resamples, rows))
    if columns == 1:
        return values[chosen, 0].mean(1)
    # How often each prompt is drawn, a part of the resamples at a time: there may be thousands of prompts.
    result = []
    for part in np.array_split(chosen, max(1, resamples * columns // 2**22)):
        often = rng.multinomial(columns, np.full(columns, 1 / columns), len(part))
        result.append((values[part].mean(1) * often).mean(1))
    return np.concatenate(result)


def _quantile(draws: np.ndarray, q: float) -> float:
    """A quantile without interpolation, which infinite values would spoil."""
    return float(np.quantile(draws, q, method="inverted_cdf"))


def reached(x: Sequence[float], y: Sequence[float], target: float) -> float:
    """The x at which a falling curve first has the value `target`, on the line between two points; infinite if never.

    At the first point it is that x, at which the curve may have been below for long.
    """
    for i, value in enumerate(y):
        if value <= target:
            if i == 0 or y[i - 1] == value:
                return float(x[i])
            share = (y[i - 1] - target) / (y[i - 1] - value)
            return float(x[i - 1] + share * (x[i] - x[i - 1]))
    return math.inf


def verdict_of(found: Difference, rule: str, threshold: float) -> str:
    """'holds', 'does not hold' or 'undecided', by the whole interval."""
    return RULES[rule](found, threshold)


def _better(found: Difference, threshold: float) -> str:
    return "holds" if found.low > threshold else "does not hold" if found.high < threshold else "undecided"


def _same(found: Difference, threshold: float) -> str:
    if -threshold < found.low and found.high < threshold:
        return "holds"
    return "does not hold" if found.low > threshold or found.high < -threshold else "undecided"


def _less(found: Difference, threshold: float) -> str:
    return "holds" if found.high < threshold else "does not hold" if found.low > threshold else "undecided"


RULES = {"better": _better, "same": _same, "less": _less}
