"""A few lines that say what an experiment is, in place of its hundreds of fields."""

from typing import Any

WIDTH = 110
STREAMS = 4  # the most that are shown


def brief(experiment: Any) -> str:
    """An `Experiment` in at most ten lines; `transfusion config print` shows all fields."""
    model, data, optim = experiment.model, experiment.data, experiment.optim
    words = f"{model.layers} layers of width {model.width}, {model.heads} heads"
    sequence = experiment.task == "sequence"
    rows = [("model", words) if sequence else ("codec", experiment.autoencoder.form)]
    streams = list(experiment.streams.items()) if sequence else []
    rows += [(name, f"{s.objective}, {s.budget} tokens in a row") for name, s in streams[:STREAMS]]
    if len(streams) > STREAMS:
        rows.append(("...", f"and {len(streams) - STREAMS} streams more"))
    sources = (f"{name} ({source.kind})" for name, source in data.sources.items())
    rows += [("data", ", ".join(sources)), ("optim", f"{optim.schedule}, at most {optim.learning_rate:g}")]
    lines = [f"Experiment: {experiment.task}, {experiment.steps:,} steps of {experiment.batch_size} rows"]
    lines += [f"  {name:<8} {words}" for name, words in rows]
    return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines)
