"""IsoFLOP profiles: losses of several sizes at the same compute, and the best size for it (Hoffmann et al., 3.2).

Each profile is a parabola of the loss over the logarithm of the size. Where a run has several measurements, its loss at
a budget lies on the line between its neighbours, in logarithms; nothing is extrapolated. A lowest point outside of the
sizes is none: such profiles are shown, and not used. Parabolas are biased where sizes lie far apart or the two
exponents differ (arXiv 2603.22339), so that the exponent b / (a + b) of the law stands beside theirs.
"""

import dataclasses

import numpy as np

from transfusion.evaluation.intervals import Score
from transfusion.scaling.fits import Fitted, interval
from transfusion.scaling.points import Points

BUDGETS = 6
SAME = 1.05  # budgets that differ by less than this factor are one
FEWEST = 3  # sizes of a profile


@dataclasses.dataclass(frozen=True)
class Profile:
    """The losses of several sizes at one budget.

    Attributes:
      flops: the budget.
      sizes, losses: float64 [S].
      curve: the parabola's three numbers over log(size), highest power first.
      best: the size at its lowest point; None if that is not within the sizes.
    """

    flops: float
    sizes: np.ndarray
    losses: np.ndarray
    curve: np.ndarray
    best: float | None


def of_one_mixture(points: Points) -> np.ndarray:
    """Which rows are of the most frequent mixture, bool [P]: profiles compare sizes only."""
    shares = np.round([points.own[m] / points.tokens for m in points.modalities], 1)
    kinds, group = np.unique(shares, axis=1, return_inverse=True)
    return group.ravel() == np.bincount(group.ravel(), minlength=kinds.shape[1]).argmax()


def budgets(points: Points) -> list[float]:
    """The budgets at which at least `FEWEST` sizes were measured, or lie between measurements."""
    if len(points.runs) == len(points):
        order = np.argsort(points.flops)
        groups = np.split(order, np.flatnonzero(np.diff(np.log(points.flops[order])) > np.log(SAME)) + 1)
        kept = [g for g in groups if len(np.unique(points.parameters[g])) >= FEWEST]
        return [float(np.exp(np.log(points.flops[g]).mean())) for g in kept]
    ends = [points.flops[points.run == run] for run in points.runs]
    first, last = sorted(e.min() for e in ends), sorted((e.max() for e in ends), reverse=True)
    if len(ends) < FEWEST or first[FEWEST - 1] >= last[FEWEST - 1]:
        return []
    return np.geomspace(first[FEWEST - 1], last[FEWEST - 1], BUDGETS).tolist()


def profile(points: Points, losses: np.ndarray, flops: float) -> Profile | None:
    """The profile at a budget, or None if fewer than `FEWEST` sizes reach it."""
    found: dict[float, list[float]] = {}
    for run in points.runs:
        mine = np.flatnonzero(points.run == run)
        mine = mine[np.argsort(points.flops[mine])]
        compute = np.log(points.flops[mine])
        near = np.log(SAME) if len(mine) == 1 else 1e-9
        if compute[0] - near <= np.log(flops) <= compute[-1] + near:
            loss = np.exp(np.interp(np.log(flops), compute, np.log(losses[mine])))
            found.setdefault(float(points.parameters[mine[0]]), []).append(float(loss))
    if len(found) < FEWEST:
        return None
    sizes = np.array(sorted(found))
    means = np.array([np.mean(found[size]) for size in sizes])
    curve = np.polyfit(np.log(sizes), means, 2)
    best = float(np.exp(-curve[1] / (2 * curve[0]))) if curve[0] > 0 else 0.0
    return Profile(flops, sizes, means, curve, best if sizes[0] <= best <= sizes[-1] else None)


def profiles(points: Points, losses: np.ndarray) -> list[Profile]:
    """The profiles of all budgets."""
    found = [profile(points, losses, flops) for flops in budgets(points)]
    return [one for one in found if one is not None]


def exponent(found: list[Profile]) -> float | None:
    """The slope of log(best size) over log(budget); None with fewer than three budgets that have a best size."""
    used = [(np.log(one.flops), np.log(one.best)) for one in found if one.best is not None]
    return float(np.polyfit(*zip(*used, strict=True), 1)[0]) if len(used) >= 3 else None


def exponent_with_interval(points: Points, fitted: Fitted) -> Score | None:
    """The exponent of the best size in the compute, with its interval; None if the profiles give none."""
    chosen = of_one_mixture(points)
    some = points.where(chosen)
    value = exponent(profiles(some, fitted.losses[chosen]))
    if value is None:
        return None
    draws = [exponent(profiles(some, losses[chosen])) for losses in fitted.drawn]
    return interval(value, [draw for draw in draws if draw is not None], len(some))
