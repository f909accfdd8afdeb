"""One self-contained page of a sweep: what its members differ in, their curves, and scores against FLOPs."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion.evaluation import page
from transfusion.evaluation.charts import Dot, Line, dot_chart, line_chart
from transfusion.evaluation.score_table import in_words
from transfusion.evaluation.sweep_table import SCORES_OF_TASK
from transfusion.running.metrics import FLOPS_PER_STEP, human, read_metrics
from transfusion.sweep.forecast import varied
from transfusion.sweep.members import Member

LOWER_IS_BETTER = ("text_bits_per_byte", "bits_per_image", "held_out_loss", "loss")
CURVES = ("held_out_loss", "loss")
Row = Mapping[str, Any]


def sweep_page(members: Sequence[Member], rows: Sequence[Row], title: str) -> str:
    """The page, as HTML. `rows` are the entries of sweep.json so far, in any order."""
    found = {row["name"]: row for row in rows}
    shown = [member for member in members if member.name in found]
    sections = [
        ("members", "Members", _table(shown, found)),
        *_of_seeds(shown, found),
        ("pareto", "Scores against training FLOPs", _charts(_pareto(shown, found))),
        ("curves", "Learning curves", _charts(_curves(shown))),
    ]
    done = sum(not row["error"] for row in rows)
    flops = sum(row["training_flops"] or 0 for row in rows)
    facts = [
        ("Members", f"{done} of {len(members)}", "trained and evaluated"),
        ("Training FLOPs", human(flops), "of all members together"),
        ("Time", f"{sum(row['seconds'] for row in rows) / 3600:.2f} h", "in trainings, beside each other or not"),
    ]
    return page.page(title, page.cards(facts), sections)


def _charts(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if charts else page.absent("nothing has been measured yet")


# --- the table --------------------------------------------------------------------------------------------------------


def _table(members: Sequence[Member], rows: Mapping[str, Row]) -> str:
    """Sizes, scores, and the fields in which members differ; a field that only one of them has set is left to the
    list below."""
    fields = varied({member.name: member.experiment for member in members})
    columns = [f for f in dict.fromkeys(f for own in fields.values() for f in own)
               if len(members) > 1 and len({repr(own.get(f)) for own in fields.values()}) > 1]  # fmt: skip
    few = [field for field in columns if all(field in own for own in fields.values())][:6]
    scores = _scores(members, rows)
    head = ("Member", *few, "Parameters", "Steps", "FLOPs", "Loss", *(name.replace("_", " ") for name in scores))
    lines = []
    for member in members:
        row = rows[member.name]
        cells = [page.escape(fields[member.name].get(field, "")) for field in few]
        cells += [human(row["parameters"]), f"{row['steps']:,}"]
        cells += ["" if row["training_flops"] is None else human(row["training_flops"])]
        cells += ["" if row["loss"] is None else f"{row['loss']:.4g}"]
        told = [_score(name, row.get(name)) for name in scores]
        if row["error"]:
            told = [f'<span class="absent">{page.escape(row["error"])}</span>', *[""] * (len(scores) - 1)]
        lines.append([page.escape(member.name), *cells, *told])
    every = "".join(
        f"<p><strong>{page.escape(name)}</strong>: "
        + page.escape(", ".join(f"{f}={v}" for f, v in own.items()) or "no field")
        + "</p>"
        for name, own in fields.items()
    )
    details = f'<details><summary>Every field that differs</summary><div class="note">{every}</div></details>'
    return page.html_table(head, lines) + details


def groups(members: Sequence[Member]) -> dict[str, list[Member]]:
    """Members that differ in the seed alone, as `seeds` names them."""
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(re.sub(r"-seed_\d+$", "", member.name), []).append(member)
    return found


def _of_seeds(members: Sequence[Member], rows: Mapping[str, Row]) -> list[tuple[str, str, str]]:
    """A section with the means over seeds, if some members differ in nothing else."""
    alike, scores = groups(members), _scores(members, rows)
    if not any(len(group) > 1 for group in alike.values()):
        return []
    lines = []
    for name, group in alike.items():
        done = [rows[member.name] for member in group if not rows[member.name]["error"]]
        lines.append([page.escape(name), str(len(done)), *(_mean(score, done) for score in scores)])
    head = ("Members", "Seeds", *(name.replace("_", " ") for name in scores))
    note = '<p class="note">Below each mean are the least and the largest value.</p>'
    return [("seeds", "Means over seeds", note + page.html_table(head, lines))]


def _mean(name: str, rows: Sequence[Row]) -> str:
    values = [row[name]["value"] for row in rows if row.get(name)]
    if not values:
        return ""
    return _score(name, {"value": statistics.mean(values), "low": min(values), "high": max(values)})


def _score(name: str, score: Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    value, interval = in_words(name.replace("_", " "), score)
    return f'{value}<br><span class="note">{interval}</span>'


def _scores(members: Sequence[Member], rows: Mapping[str, Row]) -> list[str]:
    """The scores that some member has."""
    names = dict.fromkeys(name for member in members for name in SCORES_OF_TASK[member.experiment.task])
    return [name for name in names if any(rows[member.name].get(name) for member in members)]


# --- scores against FLOPs ---------------------------------------------------------------------------------------------


def _pareto(members: Sequence[Member], rows: Mapping[str, Row]) -> list[str]:
    charts = []
    for name in _scores(members, rows):
        dots = []
        for i, member in enumerate(members):
            row = rows[member.name]
            if row.get(name) and row["training_flops"]:
                score = row[name]
                dots.append(Dot(member.name, row["training_flops"], score["value"], score["low"], score["high"], i))
        title, lower = name.replace("_", " "), name in LOWER_IS_BETTER
        best = frontier(dots, lower)
        charts.append(
            dot_chart(
                f"{title} ({'less' if lower else 'more'} is better)", dots, "training FLOPs", title, best, log=True
            )
        )
    return charts


def frontier(dots: Sequence[Dot], lower: bool) -> list[Dot]:
    """The dots that no other beats: none has as few FLOPs and a better score. From few FLOPs to many."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda d: (d.x, d.y if lower else -d.y)):
        if not best or (dot.y < best[-1].y if lower else dot.y > best[-1].y):
            best.append(dot)
    return best


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(members: Sequence[Member]) -> list[str]:
    logged = [(member, read_metrics(member.workdir / "metrics.jsonl")) for member in members]
    charts = []
    for column in CURVES:
        lines = []
        for i, (member, rows) in enumerate(logged):
            x, y = curve(rows, column)
            if x:
                lines.append(Line(member.name, x, y, dashed=i >= 6, colour=i))
        if lines:
            said = column.replace("_", " ")
            charts.append(line_chart(f"{said} over training FLOPs", lines, "training FLOPs", said, log=True))
    return charts


def curve(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """A column of metrics.jsonl over the training FLOPs so far; rows without it are left out.

    Where a run of an earlier version did not count FLOPs, x is the step.
    """
    x, y, total, last = [], [], 0.0, 0
    counts = all(row.get(FLOPS_PER_STEP) is not None for row in rows)
    for row in rows:
        total += (row[FLOPS_PER_STEP] if counts else 1.0) * (row["step"] - last)
        last = row["step"]
        if row.get(column) is not None:
            x.append(total)
            y.append(row[column])
    return x, y
