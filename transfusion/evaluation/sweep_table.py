"""The table of a sweep: a row of sizes and scores for each member."""

from collections.abc import Iterable, Mapping
from typing import Any

from transfusion.evaluation.score_table import in_words
from transfusion.running.metrics import human

# The task of a member -> the scores that the table shows of it.
SCORES_OF_TASK = {
    "sequence": ("generation_accuracy", "caption_accuracy", "zero_shot_accuracy", "text_bits_per_byte"),
    "autoencoder": ("bits_per_image", "psnr", "psnr_drawn", "ssim", "codebook_use"),
}
HEADINGS = ("name", "parameters", "steps", "training FLOPs", "seconds", "loss")


def sweep_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as markdown; scores with their 95 per cent intervals, a failed member with its reason."""
    rows = list(rows)
    scores = [name for names in SCORES_OF_TASK.values() for name in names if any(name in entry for entry in rows)]
    headings = (*HEADINGS, *(name.replace("_", " ") for name in scores))
    lines = [headings, ("---",) * len(headings)]
    for entry in rows:
        cells = [
            entry["name"], human(entry["parameters"]), str(entry["steps"]),
            "not counted" if entry["training_flops"] is None else human(entry["training_flops"]),
            f"{entry['seconds']:.0f}",
            "" if entry["loss"] is None else f"{entry['loss']:.4g}",
        ]  # fmt: skip
        if entry["error"]:
            cells += ["failed: " + entry["error"].replace("|", "/")] + [""] * (len(scores) - 1)
        else:
            cells += [_score(name, entry.get(name)) for name in scores]
        lines.append(tuple(cells))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _score(name: str, score: Mapping[str, float] | None) -> str:
    if score is None:
        return "not measured"
    value, interval = in_words(name.replace("_", " "), score)
    return value if score["low"] == score["high"] else f"{value} ({interval})"  # a count has no interval
