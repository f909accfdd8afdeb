"""What a notebook shows of a run: curves, pictures and scores, each with a short text and a picture."""

import dataclasses
import html
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.errors import UsageError, nearest
from transfusion.evaluation import pictures
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.score_table import score_table

MOST_PICTURES = 64
# Colours of its own, as a notebook may be light or dark; each rule is bound to this figure and touches nothing else.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0508c", "#b57d00", "#6b6f7a")
_STYLE = (
    ".transfusion-figure { background: #fff; color: #1d1f24; max-width: 560px; font: 13px system-ui, sans-serif; }"
    ".transfusion-figure figure { margin: 0; padding: 8px; }"
    ".transfusion-figure text { fill: #5d636e; font-size: 12px; }"
    ".transfusion-figure .rule { stroke: #e2e3e6; } .transfusion-figure .axis { stroke: #5d636e; }"
    ".transfusion-figure .line { fill: none; stroke-width: 2; } .transfusion-figure .dashed { stroke-dasharray: 5 4; }"
    ".transfusion-figure .key { width: 24px; height: 8px; margin: 0 6px; }"
    + "".join(
        f".transfusion-figure .line.c{i} {{ stroke: {c}; }} .transfusion-figure .dot.c{i} {{ fill: {c}; }}"
        for i, c in enumerate(_COLOURS)
    )
)


@dataclasses.dataclass(frozen=True, repr=False)
class Figure:
    """A chart of numbers over steps.

    Attributes:
      title: what it shows.
      curves: (steps, values) by name; a value of None is a gap.
      log: whether the values are shown on a logarithmic scale.
    """

    title: str
    curves: Mapping[str, tuple[Sequence[int], Sequence[float | None]]]
    log: bool = True

    def _repr_html_(self) -> str:
        lines = [
            Line(name, *points, dashed=name.startswith("held_out"), colour=i)
            for i, (name, points) in enumerate(self.curves.items())
        ]
        chart = line_chart(self.title, lines, "step", log=self.log)
        return f'<div class="transfusion-figure"><style>{_STYLE}</style>{chart}</div>'

    def __repr__(self) -> str:
        last = {
            name: next((v for v in values[::-1] if v is not None), None) for name, (_, values) in self.curves.items()
        }
        return f"Figure({self.title!r}: {', '.join(f'{n} {v:.4g}' for n, v in last.items() if v is not None)})"

    def save(self, path: str | os.PathLike) -> None:
        """Writes the chart as a page of HTML."""
        storage.write_whole(path, f"<!doctype html><meta charset=utf-8><title>{self.title}</title>{self._repr_html_()}")


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> Figure:
    """The chart of numbers of metrics.jsonl by their names; without names, of the losses.

    Raises:
      UsageError: if there are no rows, or no such number.
    """
    known = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    if not known:
        raise UsageError("there is nothing to plot yet: no step was logged")
    for name in names:
        if name not in known:
            raise UsageError(f"no number {name!r} in metrics.jsonl{nearest(name, known)}: {', '.join(known)}")
    chosen = names or [n for n in known if n in ("loss", "held_out_loss") or n.endswith("_loss") and "held" not in n]
    steps = [row["step"] for row in rows]
    points = {name: [row.get(name) for row in rows] for name in chosen}
    kept = {  # a number that only some rows have, such as a held-out loss, is a line through those
        name: ([s for s, v in zip(steps, values, strict=True) if v is not None], [v for v in values if v is not None])
        for name, values in points.items()
    }
    return Figure(", ".join(chosen) if names else "losses", kept)


class Drawings(np.ndarray):
    """An array of pictures, which a notebook shows as pictures. It is like any other array otherwise."""

    def _repr_png_(self) -> bytes | None:
        shown = np.asarray(self)
        if shown.dtype != np.uint8 or shown.ndim not in (3, 4) or shown.shape[-1] not in (1, 3) or 0 in shown.shape:
            return None
        return png(list(shown[:MOST_PICTURES]) if shown.ndim == 4 else [shown])

    def __repr__(self) -> str:
        return f"Drawings {self.dtype} {list(self.shape)}" if self.ndim > 2 else super().__repr__()


def png(images: Sequence[np.ndarray], captions: Sequence[str] | None = None) -> bytes:
    """Pictures uint8 [H, W, C] beside each other as a PNG file, small ones enlarged."""
    out = io.BytesIO()
    pictures.grid(images, min(len(images), 8), captions).save(out, "PNG")
    return out.getvalue()


@dataclasses.dataclass(frozen=True, repr=False)
class Path:
    """How a picture came out of noise.

    Attributes:
      times: float32 [k], 0 for noise and 1 for the picture.
      noisy: the states x_t as pictures, uint8 [k, H, W, C].
      guesses: what the model took the picture to be at each of them, uint8 [k, H, W, C].
    """

    times: np.ndarray
    noisy: np.ndarray
    guesses: np.ndarray

    def _repr_png_(self) -> bytes:
        chosen = np.unique(np.linspace(0, len(self.times) - 1, 8).round().astype(int))
        captions = [f"t = {self.times[i]:.2f}" for i in chosen] + ["guess"] * len(chosen)
        out = io.BytesIO()
        shown = [*self.noisy[chosen], *self.guesses[chosen]]
        pictures.grid(shown, len(chosen), captions).save(out, "PNG")
        return out.getvalue()

    def __repr__(self) -> str:
        return f"Path of {len(self.times)} steps to a picture {list(self.noisy.shape[1:])}"


class Scores(dict):
    """The content of evaluation.json, which is shown as a table."""

    def __repr__(self) -> str:
        return score_table(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(score_table(self))}</pre>"
