"""The scores of an evaluation as lines that people read."""

from typing import Any

from transfusion.evaluation.intervals import Score

FIXED = ("velocity loss", "code bits")  # at fixed times and shares, which the table shows the mean of


def named_scores(result: dict[str, Any]) -> list[tuple[str, Score]]:
    """The scores of an evaluation in the order of the table, named by their path."""
    found: list[tuple[str, Score]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict) and {"value", "low", "high", "count"} <= value.keys():
            found.append((name, value))
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name} / {key.replace('_', ' ')}", inner)

    for name, value in result.items():
        if name not in ("config", "machine", "versions", "code", "sampler"):
            walk(name.replace("_", " "), value)
    return found


def is_share(name: str) -> bool:
    """Whether a score of this name is shown in percent."""
    return "accuracy" in name or "retrieval" in name or name == "codebook use"


def in_words(name: str, score: Score) -> tuple[str, str]:
    """A score's value and interval as people read them."""
    if is_share(name):
        return f"{score['value']:.1%}", f"{score['low']:.1%} to {score['high']:.1%}"
    return f"{score['value']:.4g}", f"{score['low']:.4g} to {score['high']:.4g}"


def score_table(result: dict[str, Any]) -> str:
    """The scores as aligned lines; those by class, source and time are left to the file."""
    short = [
        (n, s) for n, s in named_scores(result) if " by " not in n and (n.endswith("mean") or not n.startswith(FIXED))
    ]
    width = max([len(name) for name, _ in short], default=0)
    lines = []
    for name, score in short:
        value, interval = in_words(name, score)
        lines.append(f"{name:<{width}}  {value:>8}  [{interval}]  n = {score['count']}")
    return "\n".join(lines + [f"{name.replace('_', ' ')}: none, {why}" for name, why in result["absent"].items()])
