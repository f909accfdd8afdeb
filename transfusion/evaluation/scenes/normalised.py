"""Scores from which chance is taken off, their rank, and intervals over prompts and seeds.

What was right is kept prompt by prompt: an array [S, K, N] of S runs (seeds), K skills and N prompts of each. A score
is the mean over skills of (share - chance) / (1 - chance), so that chance is 0 and always right is 1. The rank of a
system is the geometric mean of its scores in drawing and in reading, so that who can do only one of them has none.

Intervals are bootstraps over the prompts of each skill and, with several runs, over these, too. All systems get the
same prompts, and `difference` draws the same ones for both.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from transfusion.evaluation.intervals import Score, score

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """What was right, prompt by prompt.

    Attributes:
      drawn: float or bool [S, K, N]; None if the model does not draw.
      read: the same of reading, of the same facts.
      drawn_chance, read_chance: [K], how often each skill is right by chance, or blindly.
    """

    drawn: np.ndarray | None
    read: np.ndarray | None
    drawn_chance: np.ndarray
    read_chance: np.ndarray

    def joined(self, other: "Results") -> "Results":
        """With the runs of another seed, which has the same prompts."""

        def both(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
            return None if a is None or b is None else np.concatenate([a, b])

        return dataclasses.replace(self, drawn=both(self.drawn, other.drawn), read=both(self.read, other.read))


Statistic = Callable[[Results, np.ndarray, np.ndarray], float]
"""A score of results with these runs [S] and prompts [K, N]."""


def normalised(right: np.ndarray, chance: np.ndarray, runs: np.ndarray, prompts: np.ndarray) -> float:
    """The mean over skills of what is right beyond chance, of the chosen runs [S] and prompts [K, N]."""
    skills = np.arange(right.shape[1])[:, None]
    share = right[runs][:, skills, prompts].mean((0, 2))
    return float(((share - chance) / (1 - chance)).mean())


def generation(found: Results, runs: np.ndarray, prompts: np.ndarray) -> float:
    return 0.0 if found.drawn is None else normalised(found.drawn, found.drawn_chance, runs, prompts)


def understanding(found: Results, runs: np.ndarray, prompts: np.ndarray) -> float:
    return 0.0 if found.read is None else normalised(found.read, found.read_chance, runs, prompts)


def rank(found: Results, runs: np.ndarray, prompts: np.ndarray) -> float:
    """The geometric mean of both scores; 0 if one of them is not above chance."""
    both = [max(statistic(found, runs, prompts), 0.0) for statistic in (generation, understanding)]
    return math.sqrt(math.prod(both))


STATISTICS: dict[str, Statistic] = {"generation": generation, "understanding": understanding, "rank": rank}


def _sizes(found: Results) -> tuple[int, int, int]:
    right = found.drawn if found.drawn is not None else found.read
    if right is None:
        raise ValueError("results of a model that neither draws nor reads")
    return right.shape


def _resampled(sizes: tuple[int, int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    runs, skills, prompts = sizes
    return rng.integers(0, runs, runs), rng.integers(0, prompts, (skills, prompts))


def _all(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    runs, skills, prompts = sizes
    return np.arange(runs), np.broadcast_to(np.arange(prompts), (skills, prompts))


def _interval(value: float, draws: list[float], count: int) -> Score:
    return score(value, np.quantile(draws, 0.025), np.quantile(draws, 0.975), count)


def interval(found: Results, statistic: Statistic, seed: int = 0) -> Score:
    """A score with its interval of 95 %; the count is that of runs times prompts."""
    sizes, rng = _sizes(found), np.random.default_rng(seed)
    draws = [statistic(found, *_resampled(sizes, rng)) for _ in range(RESAMPLES)]
    return _interval(statistic(found, *_all(sizes)), draws, math.prod(sizes))


def difference(first: Results, second: Results, statistic: Statistic, seed: int = 0) -> Score:
    """By how much the first system is better than the second, with the interval of 95 % of a paired bootstrap.

    Both have answered the same prompts; runs with the same number have the same seed.

    Raises:
      ValueError: if they have not.
    """
    sizes, rng = _sizes(first), np.random.default_rng(seed)
    if sizes != _sizes(second):
        raise ValueError(f"results of {sizes} and {_sizes(second)} runs, skills and prompts cannot be paired")

    def apart(runs: np.ndarray, prompts: np.ndarray) -> float:
        return statistic(first, runs, prompts) - statistic(second, runs, prompts)

    draws = [apart(*_resampled(sizes, rng)) for _ in range(RESAMPLES)]
    return _interval(apart(*_all(sizes)), draws, math.prod(sizes))


# --- a bit for each prompt ------------------------------------------------------------------------------------------


def packed(right: np.ndarray) -> str:
    """What was right, bool [K, N], as hexadecimal digits."""
    return np.packbits(np.asarray(right, bool).ravel()).tobytes().hex()


def unpacked(digits: str, skills: int, prompts: int) -> np.ndarray:
    """The inverse of `packed`.

    Raises:
      ValueError: if the digits are damaged.
    """
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    if not 0 <= len(bits) - skills * prompts < 8:
        raise ValueError(f"{len(bits)} bits are not those of {skills} skills with {prompts} prompts each")
    return bits[: skills * prompts].reshape(skills, prompts).astype(bool)
