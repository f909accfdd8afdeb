"""One self-contained page of all claims: verdicts, values by seed, and curves where the runs are at hand."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion.claims.claim import Claim
from transfusion.claims.ledger import Claimed
from transfusion.claims.table import Found, interval, remarks, scale
from transfusion.evaluation import page
from transfusion.evaluation.charts import Line, line_chart
from transfusion.running.metrics import human, read_metrics
from transfusion.sweep.page import curve


def claims_page(claims: Sequence[tuple[Claim, Found]], runs: Mapping[tuple[str, str], Claimed]) -> str:
    """The page, as HTML. `runs` are those of (claim, size), for curves."""
    words = [one.get("verdict", "not run") for claim, found in claims for one in _by_size(claim, found).values()]
    facts = [(word, str(words.count(word)), "claims and sizes") for word in dict.fromkeys(words)]
    sections = [("table", "All claims", _table(claims))]
    sections += [(claim.name, claim.name, _claim(claim, found, runs)) for claim, found in claims]
    return page.page("Claims and verdicts", page.cards(facts), sections)


def _by_size(claim: Claim, found: Found) -> dict[str, Mapping[str, Any]]:
    return {size: found.get(size) or {"verdict": "not run", "tests": []} for size in claim.sizes}


def _table(claims: Sequence[tuple[Claim, Found]]) -> str:
    rows = []
    for claim, found in claims:
        for size, one in _by_size(claim, found).items():
            tests = "<br>".join(page.escape(interval(test)) for test in one["tests"])
            name = f'<a href="#{page.escape(claim.name)}">{page.escape(claim.name)}</a>'
            rows.append((name, size, page.escape(one["verdict"]), tests))
    return page.html_table(("Claim", "Size", "Verdict", "Advantage (95 % interval; threshold)"), rows)


def _claim(claim: Claim, found: Found, runs: Mapping[tuple[str, str], Claimed]) -> str:
    said = f"<p><strong>{page.escape(claim.hypothesis)}</strong></p><p>{page.escape(claim.source)}.</p>"
    said += f'<p class="note">{page.escape(claim.notes)}</p>' if claim.notes else ""
    for size, one in _by_size(claim, found).items():
        said += f"<p>Size {page.escape(size)}: <strong>{page.escape(one['verdict'])}</strong>"
        said += f", {page.escape(scale(one))}</p>" if one["tests"] else "</p>"
        said += _tests(one) if one["tests"] else ""
        columns = dict.fromkeys(test.curve or test.reaches or "loss" for test in claim.tests)
        found_lines = {column: _curves(runs.get((claim.name, size)), column) for column in columns}
        charts = [
            line_chart(f"{column.replace('_', ' ')}, mean over seeds", lines, "training FLOPs", "loss", log=True)
            for column, lines in found_lines.items()
            if lines
        ]
        room = f' style="max-width: {550 * len(charts)}px"'
        said += f'<div class="charts"{room}>{"".join(charts)}</div>' if charts else ""
    return said


def _tests(one: Mapping[str, Any]) -> str:
    rows = []
    for test in one["tests"]:
        values = "<br>".join(
            f"{page.escape(name)}: " + ", ".join("never" if v is None else f"{v:.4g}" for v in values)
            for name, values in test.get("values", {}).items()
        )
        rows.append((page.escape(test["title"]), page.escape(test["verdict"]), page.escape(interval(test)), values))
    table = page.html_table(("Test", "Verdict", "Advantage", "Values by seed"), rows)
    systems = [
        (page.escape(name), human(of["parameters"]), f"{of['steps']:,}",
         human(of["training_flops"]) if of["training_flops"] else "", f"{of['seconds']:,.0f}")
        for name, of in one["systems"].items()
    ]  # fmt: skip
    sizes = page.html_table(("System", "Parameters", "Steps", "FLOPs of a run", "Seconds of all"), systems)
    notes = "".join(f'<p class="note">{page.escape(line)}</p>' for line in remarks(one))
    return table + sizes + notes


def _curves(claimed: Claimed | None, column: str) -> list[Line]:
    """The mean curve of each system's seeds with their range, at the rows that all of them have."""
    lines = []
    for i, (name, members) in enumerate(claimed.systems.items() if claimed else ()):
        found = [curve(read_metrics(member.workdir / "metrics.jsonl"), column) for member in members]
        found = [(x, y) for x, y in found if x]
        if found:
            count = min(len(x) for x, _ in found)
            at = [[y[k] for _, y in found] for k in range(count)]
            x = [statistics.mean(x[k] for x, _ in found) for k in range(count)]
            mean, low, high = ([f(values) for values in at] for f in (statistics.mean, min, max))
            lines.append(Line(name, x, mean, low, high, colour=i))
    return lines
