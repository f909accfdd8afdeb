"""The page of a study: its table of exponents, and the charts of each system."""

from collections.abc import Iterator

import numpy as np

from transfusion.evaluation import page
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.intervals import Score
from transfusion.scaling.isoflop import of_one_mixture
from transfusion.scaling.study import System, between_systems, frontier

HEADINGS = {
    "size_exponent": "a, of the size",
    "data_exponent": "b, of the data",
    "optimal_exponent": "b / (a + b)",
    "floor": "E, the floor",
    "transfer": "k, of other tokens",
}
EXPLAINED = (
    "L(N, D) = E + A / N^a + B / D^b, with N the weights that a token passes and D the modality's own tokens plus k "
    "times the others. b / (a + b) is the exponent of C in the best N for C FLOPs; beside it stands that of the "
    "parabolas. Brackets: 95 % intervals of a residual bootstrap over runs and measurements."
)


def figure(found: dict[str, System], title: str) -> str:
    """The page, as HTML without scripts and other files."""
    sections = [("exponents", "Exponents", _exponents(found)), ("prediction", "The held-out run", _predicted(found))]
    for i, (name, system) in enumerate(found.items()):
        charts = "".join(_charts(system))
        sections.append((f"system{i}", f"System: {name}", f'<div class="charts">{charts}</div>'))
    count = sum(len(system.points) for system in found.values())
    header = f'<p class="lead">{count} measurements of {", ".join(map(page.escape, found))}.</p>'
    return page.page(title, header, [section for section in sections if section[2]])


def _exponents(found: dict[str, System]) -> str:
    rows = []
    for name, system in found.items():
        for modality in system.laws:
            numbers = system.numbers(modality)
            cells = [_cell(numbers.get(key)) for key in HEADINGS]
            rows.append([page.escape(f"{name}, {modality}"), *cells, _cell(system.exponents[modality])])
        for pair, numbers in system.differences().items():
            cells = [_cell(numbers.get(key)) for key in HEADINGS]
            rows.append([page.escape(f"{name}, {pair}"), *cells, ""])
    for pair, modalities in between_systems(found).items():
        for modality, numbers in modalities.items():
            rows.append([page.escape(f"{pair}, {modality}"), *(_cell(numbers.get(key)) for key in HEADINGS), ""])
    head = ("System and modality", *HEADINGS.values(), "By parabolas")
    return page.html_table(head, rows) + f'<p class="note">{page.escape(EXPLAINED)}</p>'


def _cell(score: Score | None) -> str:
    return "" if score is None else page.escape(shown(score))


def shown(score: Score) -> str:
    """A number with its interval, as people read it."""
    return f"{score['value']:.3g} [{score['low']:.3g}, {score['high']:.3g}]"


def _predicted(found: dict[str, System]) -> str:
    rows = []
    for name, system in found.items():
        for one in system.predictions:
            run = system.held_out.runs[0]
            inside = one.predicted["low"] <= one.measured <= one.predicted["high"]
            cells = (f"{one.measured:.4g}", shown(one.predicted), f"{one.off:+.1%}", "yes" if inside else "no")
            rows.append([page.escape(f"{name}, {run}, {one.modality}"), *map(page.escape, cells)])
    head = ("Run and modality", "Measured", "Predicted", "Off by", "Within the interval")
    return page.html_table(head, rows) if rows else ""


def _charts(system: System) -> Iterator[str]:
    for modality in system.laws:
        yield _losses(system, modality)
    for modality in system.laws:
        if system.profiles[modality]:
            yield _isoflop(system, modality)
    yield _best(system)


def _losses(system: System, modality: str) -> str:
    """Losses over compute: those of every run, the lowest that the law allows, and the held-out run."""
    points, law = system.points, system.laws[modality].law
    lines = [Line("measured", points.flops, points.losses[modality], colour=5, loose=True)]
    away, last = system.held_out, points.flops.max()
    if away is not None:
        last = max(last, away.flops.max())
        one = next(p for p in system.predictions if p.modality == modality)
        at = [float(away.flops.max())]
        lines += [Line("held out, measured", away.flops, away.losses[modality], colour=1, loose=True)]
        band = {"low": [one.predicted["low"]], "high": [one.predicted["high"]]}
        lines += [Line("held out, predicted", at, [one.predicted["value"]], **band, colour=2, loose=True)]
    flops = np.geomspace(points.flops.min(), last, 40)
    per_token = float(np.median(points.flops / (points.parameters * points.tokens)))
    chosen = of_one_mixture(points)
    share = float(np.median((points.own[modality] / points.tokens)[chosen]))
    lines.append(Line("lowest by the law", flops, frontier(law, flops, per_token, share), colour=0))
    return line_chart(f"Loss of {modality} over compute", lines, "FLOPs", "held-out loss", log=True, log_x=True)


def _isoflop(system: System, modality: str) -> str:
    lines = []
    for i, one in enumerate(system.profiles[modality]):
        lines.append(Line(f"{one.flops:.1e} FLOPs", one.sizes, one.losses, colour=i, loose=True))
        sizes = np.geomspace(one.sizes[0], one.sizes[-1], 30)
        lines.append(Line("", sizes, np.polyval(one.curve, np.log(sizes)), colour=i, dashed=True))
    return line_chart(f"IsoFLOP profiles of {modality}", lines, "weights that a token passes", "loss", log_x=True)


def _best(system: System) -> str:
    """The best size over compute: of the parabolas, and the line through them."""
    lines = []
    for i, modality in enumerate(system.laws):
        used = [(one.flops, one.best) for one in system.profiles[modality] if one.best is not None]
        if not used:
            continue
        flops, best = (np.array(column) for column in zip(*used, strict=True))
        lines.append(Line(modality, flops, best, colour=i, loose=True))
        if len(used) > 2:
            slope, start = np.polyfit(np.log(flops), np.log(best), 1)
            line = np.exp(start + slope * np.log(flops))
            lines.append(Line(f"{modality}: C^{slope:.2f}", flops, line, colour=i))
    return line_chart("The best size for a budget", lines, "FLOPs", "weights", log=True, log_x=True)
