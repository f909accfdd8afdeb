"""What is known of finished trainings: sizes, data, compute and the losses of each modality; read from a CSV.

A CSV has a line per measurement and these columns, in any order:

- parameters: the weights that a token passes, without those of experts that it does not take.
- tokens: how many tokens the model has been trained on.
- flops: the FLOPs of the training so far.
- NAME_loss: the held-out loss of the modality NAME; one column or more.

and, if there are any:

- NAME_tokens: those of the tokens that are of this modality.
- mixture: where there are two modalities and no such columns, the share of the tokens that are of the second one.
- system: what was trained, such as 'dense' and 'mot'; each gets laws of its own.
- run: measurements of the same training have the same name.

Other columns are left alone.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.errors import UsageError, nearest, shown

NEEDED = ("parameters", "tokens", "flops")
LOSS, TOKENS = "_loss", "_tokens"
FEWEST = 7  # measurements of a system: a law has five numbers, and two more say how far it is off


@dataclasses.dataclass(frozen=True)
class Points:
    """Measurements, one per row of every array.

    Attributes:
      system, run: names [P].
      parameters, tokens, flops: float64 [P].
      losses: float64 [P] of each modality.
      own: float64 [P] of each modality, the tokens that are of it.
    """

    system: np.ndarray
    run: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    losses: dict[str, np.ndarray]
    own: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.run)

    @property
    def systems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.system.tolist()))

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.losses)

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.run.tolist()))

    def where(self, chosen: np.ndarray) -> "Points":
        """The rows that `chosen` (bool or indices) picks."""
        return Points(
            *(getattr(self, name)[chosen] for name in ("system", "run", *NEEDED)),
            losses={name: values[chosen] for name, values in self.losses.items()},
            own={name: values[chosen] for name, values in self.own.items()},
        )

    def mixed(self, modality: str) -> bool:
        """Whether the modality's share of the tokens differs between the rows by more than a tenth."""
        share = self.own[modality] / self.tokens
        return bool(np.ptp(share) > 0.1 * share.mean())

    def rows(self) -> list[dict[str, Any]]:
        """The rows as a CSV has them."""
        names = [*(f"{m}{TOKENS}" for m in self.own), *(f"{m}{LOSS}" for m in self.losses)]
        columns = [self.system, self.run, self.parameters, self.tokens, self.flops]
        columns += [*self.own.values(), *self.losses.values()]
        table = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(("system", "run", *NEEDED, *names), row, strict=True)) for row in table]


def read_csv(path: str | pathlib.Path) -> Points:
    """The measurements of a CSV.

    Raises:
      UsageError: if the file cannot be read, or is no such table; with the line and the column.
    """
    if not pathlib.Path(path).is_file():
        raise UsageError(f"the file {path} does not exist")
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text: save it as a CSV in UTF-8") from None
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV: {error}") from error
    return points_of(rows, columns, str(path))


def points_of(rows: Iterable[tuple[int, Mapping[str, Any]]], columns: Sequence[str], where: str) -> Points:
    """The measurements in rows (number of the line, values by column) of a table; `where` names it in errors.

    Raises:
      UsageError: if a column is missing, or a value is no positive number.
    """
    rows = list(rows)
    for name in NEEDED:
        if name not in columns:
            raise UsageError(f"{where} has no column {name!r}{nearest(name, columns)}; {_columns()}")
    modalities = [name.removesuffix(LOSS) for name in columns if name.endswith(LOSS) and name != LOSS]
    if not modalities:
        raise UsageError(f"{where} has no column with losses, such as 'text_loss'; {_columns()}")
    if len(set(columns)) < len(columns):
        raise UsageError(f"{where} has the column {next(c for c in columns if columns.count(c) > 1)!r} twice")
    if not rows:
        raise UsageError(f"{where} has no rows: it needs at least {FEWEST} measurements of a system")

    def column(name: str, most: float = math.inf) -> np.ndarray:
        return np.array([_number(where, line, row, name, most) for line, row in rows])

    sizes = {name: column(name) for name in NEEDED}
    names = [(row.get("run") or "").strip() or f"line {line}" for line, row in rows]
    return Points(
        np.array([(row.get("system") or "").strip() or "all" for _, row in rows], dtype=object),
        np.array(names, dtype=object),
        **sizes,
        losses={name: column(f"{name}{LOSS}") for name in modalities},
        own=_own_tokens(columns, modalities, sizes["tokens"], column, where),
    )


def _own_tokens(columns, modalities, tokens, column, where) -> dict[str, np.ndarray]:
    given = [name for name in modalities if f"{name}{TOKENS}" in columns]
    if given and len(given) < len(modalities):
        missing = next(name for name in modalities if name not in given)
        raise UsageError(f"{where} has {given[0]}{TOKENS} and no column {missing + TOKENS!r}: give both, or neither")
    if given:
        return {name: column(f"{name}{TOKENS}") for name in modalities}
    if "mixture" in columns and len(modalities) == 2:
        share = column("mixture", most=1.0)
        if (share >= 1).any():
            raise UsageError(f"{where}: a mixture of 1 leaves no tokens of {modalities[0]}")
        return dict(zip(modalities, (tokens * (1 - share), tokens * share), strict=True))
    return dict.fromkeys(modalities, tokens)


def _number(where: str, line: int, row: Mapping[str, Any], name: str, most: float) -> float:
    given = row.get(name)
    try:
        value = float(given) if given is not None else math.nan
    except ValueError:
        raise UsageError(f"{where}, line {line}: {name} is {shown(str(given))!r}, which is no number") from None
    if not 0 < value <= most or math.isinf(value):
        bound = "a positive number" if most == math.inf else f"above 0 and at most {most:g}"
        raise UsageError(f"{where}, line {line}: {name} must be {bound}, not {shown(str(given or 'empty'))}")
    return value


def _columns() -> str:
    return f"a table has {', '.join(NEEDED)} and a column NAME{LOSS} per modality"


def check_enough(points: Points, where: str) -> None:
    """Refuses measurements of a system from which no law can be fitted.

    Raises:
      UsageError: if they are too few, or all of one size, or on the same number of tokens.
    """
    for system in points.systems:
        of = points.where(points.system == system)
        if len(of) < FEWEST:
            raise UsageError(
                f"{where}: {len(of)} measurements of {system!r} are too few, a law needs at least {FEWEST}"
            )
        numbers = {"parameters": of.parameters} | {f"tokens of {m}": tokens for m, tokens in of.own.items()}
        for name, values in numbers.items():
            # The exponent is the slope over the logarithm, and three places are the least that bend.
            if len(np.unique(np.round(np.log(values), 2))) < 3:
                few = "the same" if np.ptp(np.log(values)) < 0.01 else "of two values only"
                raise UsageError(
                    f"{where}: the {name} of {system!r} are {few}: a law needs at least three different numbers of them"
                )
