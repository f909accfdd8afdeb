"""The laws of all modalities of a system, and how sure they are.

The intervals come from a residual bootstrap: losses are drawn again as the law predicts them, times noise that has the
form of the measured one. What is left of a loss beyond its law has two parts, that of its run (a seed) and that of the
single measurement; whole runs lend each other the first part, measurements the second. All modalities draw from the
same runs and measurements, so that differences between them keep what they have in common. The design, sizes and data,
stays as it is: to draw runs themselves would often leave fewer sizes than a law needs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from transfusion.evaluation.intervals import Score, score
from transfusion.scaling.law import Law, Problem, fit
from transfusion.scaling.points import Points

NUMBERS = 5  # of a law


@dataclasses.dataclass(frozen=True)
class Noise:
    """What a law leaves of the logarithms of losses: the part of each run [R] and that of each measurement [P]."""

    runs: np.ndarray
    single: np.ndarray
    group: np.ndarray  # the run of each measurement, int [P]

    @classmethod
    def of(cls, residuals: np.ndarray, run: np.ndarray) -> "Noise":
        _, group = np.unique(run.astype(str), return_inverse=True)
        count = np.bincount(group)
        means = np.bincount(group, residuals) / count
        # A fit takes a part of the noise as its own: as many degrees of freedom as the law has numbers, the runs' means
        # one each.
        runs, points = len(count), len(residuals)
        wider = np.sqrt(runs / max(runs - NUMBERS, 1)), np.sqrt(points / max(points - runs, 1))
        return cls((means - means.mean()) * wider[0], (residuals - means[group]) * wider[1], group)

    def drawn(self, of_run: np.ndarray, of_point: np.ndarray) -> np.ndarray:
        """Noise [P] in which runs and measurements have the noise of those with these indices, [R] and [P]."""
        return self.runs[of_run][self.group] + self.single[of_point]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The law of a modality.

    Attributes:
      law: the fit of the measured losses.
      noise: what it leaves of them.
      losses: the measured losses, float64 [P].
      again: the laws of losses that were drawn again.
      drawn: those losses, float64 [resamples, P].
    """

    law: Law
    noise: Noise
    losses: np.ndarray
    again: tuple[Law, ...]
    drawn: np.ndarray

    def interval(self, of: Callable[[Law], float]) -> Score:
        """A number of the law with its 95 % interval."""
        return interval(of(self.law), [of(law) for law in self.again], len(self.losses))


def interval(value: float, draws: Any, count: int) -> Score:
    """A value with its percentile interval."""
    low, high = np.quantile(draws, (0.025, 0.975)) if len(draws) else (value, value)
    return score(value, low, high, count)


def fit_system(points: Points, resamples: int, seed: int) -> dict[str, Fitted]:
    """Fits the law of every modality to the measurements of one system."""
    problems = {name: problem_of(points, name) for name in points.modalities}
    laws = {name: fit(problem, points.losses[name]) for name, problem in problems.items()}
    predicted = {name: predict(law, points, name) for name, law in laws.items()}
    noise = {name: Noise.of(np.log(points.losses[name] / predicted[name]), points.run) for name in laws}
    rng, runs, count = np.random.default_rng(seed), len(points.runs), len(points)
    again: dict[str, list[Law]] = {name: [] for name in laws}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in laws}
    for _ in range(resamples):
        of_run, of_point = rng.integers(0, runs, runs), rng.integers(0, count, count)
        for name, problem in problems.items():
            losses = predicted[name] * np.exp(noise[name].drawn(of_run, of_point))
            drawn[name].append(losses)
            again[name].append(fit(problem, losses, start=laws[name]))
    return {
        name: Fitted(law, noise[name], points.losses[name], tuple(again[name]), np.array(drawn[name]))
        for name, law in laws.items()
    }


def problem_of(points: Points, modality: str) -> Problem:
    """The sizes and data of a modality; with the other modalities' data where the mixture differs between runs."""
    others = points.tokens - points.own[modality]
    return Problem(points.parameters, points.own[modality], others if points.mixed(modality) else None)


def predict(law: Law, points: Points, modality: str) -> np.ndarray:
    """The losses of a modality that its law says of these sizes and data."""
    own = points.own[modality]
    return law(points.parameters, own, points.tokens - own)


def predict_with_interval(fitted: Fitted, points: Points, modality: str, seed: int) -> list[Score]:
    """The predicted loss of each of `points`, with the 95 % interval in which a single run's measurement lies."""
    rng = np.random.default_rng(seed)
    value, draws = predict(fitted.law, points, modality), []
    for law in fitted.again:
        noise = rng.choice(fitted.noise.runs) + rng.choice(fitted.noise.single)
        draws.append(predict(law, points, modality) * np.exp(noise))
    columns = np.array(draws).reshape(len(draws), len(points)).T
    return [interval(v, c, len(fitted.losses)) for v, c in zip(value, columns, strict=True)]
