"""The law of one modality, L(N, D) = E + A / N**a + B / D**b, and its fit (Hoffmann et al., arXiv 2203.15556, 3.3).

N are parameters and D tokens. With several mixtures of two modalities, D is the modality's own tokens and k times those
of the others: one token of another modality is worth k of its own (effective data, Hernandez et al., arXiv 2102.01293).
k > 0 is a help; with k < 0 the others harm.

The fit minimises the Huber loss of log(predicted / measured), with the prediction as a log-sum-exp. Besiroglu et al.
(arXiv 2404.10102) found that the first published fit had stopped early because its objective was tiny; here the loss is
in units of the Huber threshold, and sums, not means. Given exponents and k, the other three numbers are a linear least
squares problem (variable projection, arXiv 2603.22339): a grid over the former gives the many starting points, of which
the best are descended from. Nothing is random.
"""

import dataclasses
import functools

import numpy as np
from scipy import optimize

HUBER = 1e-3  # the residual of the logarithm beyond which the loss is linear (Hoffmann et al., section 3.3)
EXPONENTS = (0.02, 3.0)
GRID = np.geomspace(0.05, 1.6, 12)  # starting values of both exponents
COARSE = GRID[1::3]  # those of resampled losses, which also start from the fit of the measured ones
TRANSFERS = (0.0, 0.2, 1.0)  # starting values of k
DESCENTS, DESCENTS_AGAIN = 12, 1  # of the best starting points


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law. `factors` are A and B; `transfer` is k, 0 where it was not asked for."""

    floor: float
    factors: tuple[float, float]
    size_exponent: float
    data_exponent: float
    transfer: float = 0.0

    def __call__(self, parameters: np.ndarray, own: np.ndarray, others: np.ndarray | float = 0.0) -> np.ndarray:
        """The predicted losses, of these sizes and numbers of tokens."""
        data = own + self.transfer * others
        size, tokens = parameters**-self.size_exponent, data**-self.data_exponent
        return self.floor + self.factors[0] * size + self.factors[1] * tokens

    @property
    def optimal_exponent(self) -> float:
        """The exponent of C in the best N for C FLOPs, where these are proportional to N D: b / (a + b)."""
        return self.data_exponent / (self.size_exponent + self.data_exponent)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes and data of the measurements of one modality, float64 [P]; `others` are None to fit no transfer."""

    parameters: np.ndarray
    own: np.ndarray
    others: np.ndarray | None = None

    @functools.cached_property
    def scale(self) -> tuple[float, float]:
        """The geometric means of N and D. Relative to them, A and B are of the size of the loss."""
        return float(np.exp(np.log(self.parameters).mean())), float(np.exp(np.log(self.own).mean()))

    @functools.cached_property
    def least_transfer(self) -> float:
        """The lowest k that leaves at least a tenth of the data everywhere."""
        return -0.9 * float(np.min(self.own / np.maximum(self.others, 1e-9))) if self.others is not None else 0.0

    def logs(self, transfer: float) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """log(N / scale), log(D / scale), and the derivative of the latter by k."""
        size = np.log(self.parameters / self.scale[0])
        if self.others is None:
            return size, np.log(self.own / self.scale[1]), None
        data = self.own + transfer * self.others
        return size, np.log(data / self.scale[1]), self.others / data

    def law(self, theta: np.ndarray) -> Law:
        """The law of what the optimizer moves: log E, log A and log B at the scale, both exponents, and k."""
        a, b, transfer = theta[3], theta[4], theta[5] if len(theta) > 5 else 0.0
        factors = (np.exp(theta[1] + a * np.log(self.scale[0])), np.exp(theta[2] + b * np.log(self.scale[1])))
        return Law(float(np.exp(theta[0])), tuple(map(float, factors)), float(a), float(b), float(transfer))

    def theta(self, law: Law) -> np.ndarray:
        """The inverse of `law`."""
        a, b = law.size_exponent, law.data_exponent
        at_scale = np.array([law.floor, law.factors[0] * self.scale[0] ** -a, law.factors[1] * self.scale[1] ** -b])
        transfer = () if self.others is None else (law.transfer,)
        return np.array([*np.log(np.maximum(at_scale, 1e-12)), a, b, *transfer])


def fit(problem: Problem, losses: np.ndarray, start: Law | None = None) -> Law:
    """Fits a law to losses float64 [P]. From the fit of nearly the same losses, `start`, fewer descents are enough."""
    grid, descents = (GRID, DESCENTS) if start is None else (COARSE, DESCENTS_AGAIN)
    transfers = (0.0,) if problem.others is None else TRANSFERS
    starts = [_projected(problem, losses, a, b, k) for k in transfers for a in grid for b in grid]
    starts = sorted(starts, key=lambda theta: objective(theta, problem, losses))[:descents]
    if start is not None:
        starts.append(problem.theta(start))
    lowest = np.log(losses.min())
    bounds = [(lowest - 12, lowest + 1), *[(lowest - 12, lowest + 12)] * 2, EXPONENTS, EXPONENTS]
    bounds += [] if problem.others is None else [(problem.least_transfer, 20.0)]
    low, high = np.array(bounds).T
    found = [
        optimize.least_squares(
            _residuals, np.clip(theta, low + 1e-9, high - 1e-9), _slopes, (low, high), loss="huber", f_scale=HUBER,
            ftol=1e-10, xtol=1e-10, gtol=1e-14, max_nfev=400, args=(problem, losses),
        ).x
        for theta in starts
    ]  # fmt: skip
    return problem.law(min(found, key=lambda theta: objective(theta, problem, losses)))


def _projected(problem: Problem, losses: np.ndarray, a: float, b: float, transfer: float) -> np.ndarray:
    """The start with these exponents: E, A and B by least squares of the relative errors, none of them negative."""
    size, data, _ = problem.logs(transfer)
    terms = np.stack([np.ones_like(size), np.exp(-a * size), np.exp(-b * data)], 1) / losses[:, None]
    factors, _ = optimize.nnls(terms, np.ones_like(losses))
    factors = np.maximum(factors, 1e-6 * losses.min())
    return np.array([*np.log(factors), a, b, *(() if problem.others is None else (transfer,))])


def objective(theta: np.ndarray, problem: Problem, losses: np.ndarray) -> float:
    """The sum of the Huber losses, in units of `HUBER` squared."""
    off = np.abs(_residuals(theta, problem, losses)) / HUBER
    return float(np.where(off <= 1, off**2 / 2, off - 0.5).sum())


def _residuals(theta: np.ndarray, problem: Problem, losses: np.ndarray) -> np.ndarray:
    """log(predicted / measured), float64 [P]."""
    return np.logaddexp.reduce(_terms(theta, problem)[0]) - np.log(losses)


def _slopes(theta: np.ndarray, problem: Problem, losses: np.ndarray) -> np.ndarray:
    """The derivatives of the residuals by theta, float64 [P, 5 or 6]."""
    terms, (size, data, by_transfer) = _terms(theta, problem)
    share = np.exp(terms - np.logaddexp.reduce(terms))  # of each term in the prediction
    by = [*share, -share[1] * size, -share[2] * data]
    by += [] if by_transfer is None else [-share[2] * theta[4] * by_transfer]
    return np.stack(by, 1)


def _terms(theta: np.ndarray, problem: Problem) -> tuple[np.ndarray, tuple]:
    """The logarithms of the three terms [3, P], and `Problem.logs`."""
    logs = problem.logs(theta[5] if len(theta) > 5 else 0.0)
    terms = [np.full_like(logs[0], theta[0]), theta[1] - theta[3] * logs[0], theta[2] - theta[4] * logs[1]]
    return np.stack(terms), logs
