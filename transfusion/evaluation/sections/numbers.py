"""The headline of a report, the table of its scores, and the curves of its training."""

from collections.abc import Iterator

from transfusion.evaluation import page
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.meanings import MEANINGS
from transfusion.evaluation.score_table import FIXED, in_words, named_scores
from transfusion.evaluation.sections.material import Material
from transfusion.model.unified import parameter_count
from transfusion.objectives.continuous import BUCKETS
from transfusion.running.metrics import human


def header(material: Material) -> str:
    """The headline: the scores that matter most, and the size, steps and time of the training."""
    model, streams = material.experiment.model, material.run.spec.streams
    kinds = " and ".join(streams)
    seconds, batch = training_seconds(material.metrics), material.experiment.batch_size
    count = parameter_count(material.run.task.template.shapes)
    facts = [
        ("Parameters", human(count), f"{model.layers} layers, width {model.width}"),
        ("Training steps", f"{material.run.step:,}", f"of {material.experiment.steps:,}, {batch} packed rows each"),
        ("Time in steps", _duration(seconds), "compilation, evaluation and checkpoints not counted"),
    ]  # fmt: skip
    lead = f"One Transformer over the streams {kinds}, trained on {', '.join(material.experiment.data.sources)}."
    return f'<p class="lead">{page.escape(lead)}</p>{page.cards([*_headline(material), *facts])}'


def _headline(material: Material) -> Iterator[tuple[str, str, str]]:
    result = material.evaluation or {}
    names = {
        "generation_accuracy": "Drawn as asked",
        "caption_accuracy": "Captions right",
        "zero_shot_accuracy": "Classes right by the nearest caption",
        "text_bits_per_byte": "Text bits per byte",
    }
    for name, label in names.items():
        if score := result.get(name):
            value, interval = in_words(name, score)
            small = f"{interval}, n\u00a0=\u00a0{score['count']}"
            if name == "generation_accuracy" and (judge := result.get("judge_accuracy")):
                small += f"; the judge is right on {judge['value']:.1%} of real held-out images"
            yield label, value, small
    for group, label in (("training_names", "Names in training"), ("held_out_names", "Held-out names")):
        for kind, found in ((result.get("retrieval") or {}).get(group) or {}).items():
            value, interval = in_words("retrieval", found["top5"])
            yield (
                f"{label}, top five ({kind})",
                value,
                f"{interval}, n\u00a0=\u00a0{found['top5']['count']}",
            )


def scores(material: Material) -> str:
    """The table of scores, with their intervals and counts, and what each of them counts."""
    if material.evaluation is None:
        return page.absent(material.not_evaluated)
    found = named_scores(material.evaluation)
    main = [(name, score) for name, score in found if " by " not in name and not name.startswith(FIXED)]
    rest = [pair for pair in found if pair not in main]

    def lines(pairs):
        return ([page.escape(name), *map(page.escape, in_words(name, s)), f"{s['count']:,}"] for name, s in pairs)

    head = ("Score", "Value", "95 % interval", "Count")
    parts = []
    evaluated, saved = material.evaluation.get("step"), material.run.step
    if evaluated != saved:
        note = f"evaluation.json is of step {evaluated}, the checkpoint of step {saved}: "
        parts.append(page.absent(note + "evaluate again for scores of this checkpoint."))
    parts.append(page.html_table(head, lines(main)))
    parts += [page.absent(f"{name.replace('_', ' ')}: not measured, {why}") for name, why in _reasons(material)]
    if rest:
        table = page.html_table(head, lines(rest))
        parts.append(f"<details><summary>By class, source and noise level</summary>{table}</details>")
    how = [
        (page.escape(k.replace("_", " ")), page.escape(v)) for k, v in MEANINGS.items() if material.evaluation.get(k)
    ]
    explained = "".join(f"<p><strong>{name}</strong>: {why}.</p>" for name, why in how)
    parts.append(f'<details><summary>What is counted</summary><div class="note">{explained}</div></details>')
    return "".join(parts)


def _reasons(material: Material) -> list[tuple[str, str]]:
    return [(str(k), str(v)) for k, v in (material.evaluation or {}).get("absent", {}).items()]


def curves(material: Material) -> str:
    """Losses, gradient norms and speed over the steps of the training."""
    if not material.metrics:
        return page.absent("metrics.jsonl has no rows: the losses of this run were not logged.")
    streams = [name for name in material.run.spec.streams if _column(material, f"{name}_loss")]
    charts = []
    for i, name in enumerate(streams):
        lines = [
            _line(material, "training", f"{name}_loss", i),
            _line(material, "held out", f"held_out_{name}_loss", i, True),
        ]
        charts.append(line_chart(f"Loss of the {name} stream", lines, "step", "loss", log=True))
    charts += [_by_noise(material, name) for name in streams if _column(material, f"{name}_by_time_0")]
    norms = [_line(material, "all", "grad_norm", 0)]
    others = sorted(k for k in material.metrics[-1] if k.startswith("grad_norm_"))
    norms += [_line(material, k.removeprefix("grad_norm_"), k, 1 + i) for i, k in enumerate(others)]
    charts.append(line_chart("Gradient norm, before clipping", norms, "step", "norm", log=True))
    charts += _velocity(material)
    charts.append(
        line_chart("Speed", [_line(material, "all slots", "tokens_per_second", 2)], "step", "tokens per second")
    )
    last = material.metrics[-1]
    skipped, bad = last.get("skipped_updates") or 0, last.get("bad_records") or 0
    note = f"{skipped:.0f} updates skipped, {bad:.0f} records unusable.{_of_the_machine(material)}"
    return f'<div class="charts">{"".join(charts)}</div><p class="note">{page.escape(note)}</p>'


def _of_the_machine(material: Material) -> str:
    """What the metrics say of waiting for data and of memory; '' if they say nothing."""
    waits = [row["data_wait_share"] for row in material.metrics if row.get("data_wait_share") is not None]
    peak = max((row.get("device_memory_peak_bytes") or 0 for row in material.metrics), default=0)
    said = f" The devices waited for data {sum(waits) / len(waits):.1%} of the time." if waits else ""
    return said + (f" At most {peak / 1e9:.3g} GB of a device's memory were in use." if peak else "")


def _column(material: Material, name: str) -> bool:
    return any(row.get(name) is not None for row in material.metrics)


def _line(material: Material, label: str, name: str, colour: int, dashed: bool = False) -> Line:
    used = [row for row in material.metrics if name in row]
    return Line(label, [row["step"] for row in used], [row[name] for row in used], dashed=dashed, colour=colour)


def _by_noise(material: Material, stream: str) -> str:
    """Loss against noise level, at a few moments of the training."""
    count = len(material.metrics)
    moments = sorted({min(count - 1, round(share * (count - 1))) for share in (0.0, 0.1, 0.3, 1.0)})
    centres = [(i + 0.5) / BUCKETS for i in range(BUCKETS)]
    lines = []
    for colour, row in enumerate(material.metrics[moment] for moment in moments):
        values = [row.get(f"{stream}_by_time_{i}") for i in range(BUCKETS)]
        lines.append(Line(f"step {row['step']}", centres, values, colour=colour))
    return line_chart(f"Loss of the {stream} stream by noise level", lines, "t (0 is noise, 1 is data)", "loss")


def _velocity(material: Material) -> Iterator[str]:
    for name, scores in ((material.evaluation or {}).get("velocity_loss") or {}).items():
        fixed = sorted((float(t), s) for t, s in scores.items() if t != "mean")
        columns = {key: [s[key] for _, s in fixed] for key in ("value", "low", "high")}
        line = Line("held out, 95 % interval", [t for t, _ in fixed], columns["value"], columns["low"], columns["high"])
        yield line_chart(
            f"Velocity loss of the {name} stream at fixed times",
            [line],
            "t (0 is noise, 1 is data)",
            "squared error",
        )


def training_seconds(metrics: list[dict]) -> float | None:
    """Time in training steps, from the logged rates; None if no rate was logged."""
    total, before, unknown = 0.0, 0, 0
    rated = 0
    for row in metrics:
        done, before = row["step"] - before, row["step"]
        if rate := row.get("steps_per_second"):
            total, rated = total + done / rate, rated + done
        else:
            unknown += done
    # Rows without a rate hold a compilation: their steps are counted at the mean speed of the others.
    return total * (1 + unknown / rated) if rated else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not logged"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
