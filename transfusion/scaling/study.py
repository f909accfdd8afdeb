"""All that is found out from measurements: laws, IsoFLOP profiles, differences of modalities, and a held-out run."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from transfusion.errors import UsageError, check
from transfusion.evaluation.intervals import Score
from transfusion.scaling.fits import Fitted, fit_system, interval, predict_with_interval
from transfusion.scaling.isoflop import Profile, exponent_with_interval, of_one_mixture, profiles
from transfusion.scaling.law import Law
from transfusion.scaling.points import Points, check_enough

LARGEST, NONE = "largest", "none"
# What is reported of a law: the name, and how to read it.
NUMBERS = {
    "floor": lambda law: law.floor,
    "size_factor": lambda law: law.factors[0],
    "size_exponent": lambda law: law.size_exponent,
    "data_factor": lambda law: law.factors[1],
    "data_exponent": lambda law: law.data_exponent,
    "optimal_exponent": lambda law: law.optimal_exponent,
    "transfer": lambda law: law.transfer,
}
COMPARED = ("size_exponent", "data_exponent", "optimal_exponent")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The loss of a modality in the held-out run: predicted from the others, and measured."""

    modality: str
    measured: float
    predicted: Score

    @property
    def off(self) -> float:
        """By how much the prediction is too high, relative to the measured loss."""
        return self.predicted["value"] / self.measured - 1


@dataclasses.dataclass(frozen=True)
class System:
    """What is known of one system.

    Attributes:
      points: the measurements that the laws were fitted to.
      laws: the fits, by modality.
      profiles, exponents: the IsoFLOP profiles and the exponent of the best size in C, by modality.
      held_out: the measurements of the run that was left out, if it is of this system.
      predictions: of its last measurement.
    """

    points: Points
    laws: dict[str, Fitted]
    profiles: dict[str, list[Profile]]
    exponents: dict[str, Score | None]
    held_out: Points | None = None
    predictions: tuple[Prediction, ...] = ()

    def numbers(self, modality: str) -> dict[str, Score]:
        """The numbers of a modality's law with their intervals; without a transfer where none was fitted."""
        fitted = self.laws[modality]
        mixed = self.points.mixed(modality)
        return {name: fitted.interval(of) for name, of in NUMBERS.items() if name != "transfer" or mixed}

    def differences(self) -> dict[str, dict[str, Score]]:
        """The exponents of each modality minus those of each later one, with intervals."""
        return {
            f"{one} - {other}": {name: difference(self.laws[one], self.laws[other], name) for name in COMPARED}
            for one, other in itertools.combinations(self.laws, 2)
        }


def difference(first: Fitted, second: Fitted, name: str) -> Score:
    """A number of one law minus that of another, draw by draw: draws of one system's modalities belong together."""
    of = NUMBERS[name]
    draws = [of(a) - of(b) for a, b in zip(first.again, second.again, strict=True)]
    return interval(of(first.law) - of(second.law), draws, min(len(first.losses), len(second.losses)))


def between_systems(found: dict[str, System]) -> dict[str, dict[str, dict[str, Score]]]:
    """The exponents of each system minus those of each later one, by pair of systems and modality."""
    result = {}
    for one, other in itertools.combinations(found, 2):
        laws = {name: (law, found[other].laws[name]) for name, law in found[one].laws.items()}
        result[f"{one} - {other}"] = {
            modality: {name: difference(*pair, name) for name in COMPARED} for modality, pair in laws.items()
        }
    return result


def study(
    points: Points, where: str, held_out: str = LARGEST, resamples: int = 200, seed: int = 0
) -> dict[str, System]:
    """Fits everything, per system.

    Args:
      where: names the measurements in errors.
      held_out: the run that is left out and predicted: its name, 'largest' for that of the most FLOPs, or 'none'.
      resamples: of the bootstrap.

    Raises:
      UsageError: if the measurements that are left are too few.
    """
    name = held_out_run(points, held_out)
    left = points.where(points.run != name)
    check_enough(left, where if name is None else f"{where} without the held-out run {name!r}")
    found = {}
    for number, system in enumerate(points.systems):
        away = points.where((points.run == name) & (points.system == system))
        mine = left.where(left.system == system)
        if not len(mine):
            raise UsageError(f"{where}: {name!r} is the only run of {system!r}: give --held_out={NONE}")
        found[system] = _system(mine, away if len(away) else None, resamples, seed + number)
    return found


def held_out_run(points: Points, held_out: str) -> str | None:
    """The name of the run that is left out."""
    if held_out == NONE:
        return None
    if held_out == LARGEST:
        return str(points.run[np.argmax(points.flops)])
    check("--held_out", held_out, (LARGEST, NONE, *points.runs))
    return held_out


def _system(points: Points, away: Points | None, resamples: int, seed: int) -> System:
    laws = fit_system(points, resamples, seed)
    chosen = of_one_mixture(points)
    same = points.where(chosen)
    return System(
        points,
        laws,
        {name: profiles(same, fitted.losses[chosen]) for name, fitted in laws.items()},
        {name: exponent_with_interval(points, fitted) for name, fitted in laws.items()},
        away,
        () if away is None else tuple(_prediction(away, laws, name, seed) for name in laws),
    )


def _prediction(away: Points, laws: dict[str, Fitted], modality: str, seed: int) -> Prediction:
    last = away.where(np.array([np.argmax(away.flops)]))
    (score,) = predict_with_interval(laws[modality], last, modality, seed)
    return Prediction(modality, float(last.losses[modality][0]), score)


# --- as JSON ----------------------------------------------------------------------------------------------------------


def as_json(found: dict[str, System]) -> dict[str, Any]:
    """The study as scaling.json holds it."""
    return {name: _as_json(system) for name, system in found.items()}


def _as_json(system: System) -> dict[str, Any]:
    modalities = {
        name: {
            "law": system.numbers(name),
            "spread": {"runs": float(fitted.noise.runs.std()), "single": float(fitted.noise.single.std())},
            "isoflop": {
                "exponent": system.exponents[name],
                "profiles": [
                    {"flops": one.flops, "sizes": one.sizes.tolist(), "losses": one.losses.tolist(), "best": one.best}
                    for one in system.profiles[name]
                ],
            },
        }
        for name, fitted in system.laws.items()
    }
    result = {
        "measurements": len(system.points),
        "runs": len(system.points.runs),
        "modalities": modalities,
        "differences": system.differences(),
    }
    if system.held_out is not None:
        last = system.held_out
        result["held_out"] = {
            "run": last.runs[0],
            "flops": float(last.flops.max()),
            "parameters": float(last.parameters[0]),
            "losses": {p.modality: {"measured": p.measured, "off": p.off} | p.predicted for p in system.predictions},
        }
    return result


def frontier(law: Law, flops: np.ndarray, per_token: float, share: float = 1.0) -> np.ndarray:
    """The lowest losses that a law allows for these FLOPs, if a token costs `per_token` times the size in FLOPs.

    `share` is that of the modality in the tokens.
    """
    sizes = np.geomspace(1e2, 1e12, 4000)[:, None]
    tokens = flops[None] / (per_token * sizes)
    return law(sizes, share * tokens, (1 - share) * tokens).min(0)
