"""Reads evaluation.json and checks it: the file may be damaged, of another version, or not ours at all."""

import math
import os
from typing import Any

from absl import logging

from transfusion import storage

# Scores that are shown by name. A score that was not measured is null.
NAMED_SCORES = (
    "generation_accuracy", "judge_accuracy", "caption_accuracy", "zero_shot_accuracy", "text_bits_per_byte",
    "bits_per_image", "psnr", "psnr_drawn", "ssim", "codebook_use",
)  # fmt: skip
_SCORE = ("value", "low", "high", "count")


def read_evaluation(path: str | os.PathLike) -> tuple[dict[str, Any] | None, str]:
    """The content of evaluation.json and ''; or None and the reason, which is '' if there is no file.

    A damaged file counts as none, with a warning, because its readable parts would be taken for the whole.

    Raises:
      StorageError, UsageError: if the file cannot be read.
    """
    try:
        found = storage.read_json(path)
        if found is None and not os.path.exists(path):
            return None, ""
        _check(found)
    except (ValueError, RecursionError, OverflowError) as error:
        reason = f"{path} is damaged ({str(error) or 'nested too deeply'}): run transfusion.evaluate again"
        logging.warning("%s", reason)
        return None, reason
    return found, ""


def _check(found: Any) -> None:
    """Raises ValueError unless everything that is shown of an evaluation has its form."""
    if not isinstance(found, dict):
        raise ValueError("not an object")
    for name in ("absent", "config", "retrieval", "velocity_loss", "code_bits"):
        if not isinstance(found.get(name) or {}, dict):
            raise ValueError(f"{name} is no object")
    if not isinstance(found.get("step"), int):
        raise ValueError("it says no step")
    for name, value in found.items():
        if name in ("config", "machine", "versions", "sampler", "absent", "how"):
            continue
        _check_scores(name, value)
        if name in NAMED_SCORES and value is not None and not is_score(value):
            raise ValueError(f"{name} is no score")
    for name, scores in (found.get("velocity_loss") or {}).items():
        for time, score in _entries(scores):
            if (time != "mean" and not math.isfinite(float(time))) or not is_score(score):
                raise ValueError(f"velocity_loss of {name} is no score")
    for group in ("training_names", "held_out_names"):
        for _, entry in _entries((found.get("retrieval") or {}).get(group) or {}):
            if not isinstance(entry, dict) or not is_score(entry.get("top5")):
                raise ValueError("retrieval is no score")


def _entries(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("scores are no object")
    return value.items()


def _check_scores(name: str, value: Any) -> None:
    if isinstance(value, dict):
        if "value" in value and not is_score(value):
            raise ValueError(f"{name} is no score")
        for key, inner in value.items():
            _check_scores(f"{name} / {key}", inner)


def is_score(value: Any) -> bool:
    """Whether `value` is a score: a number with its interval and count."""
    return isinstance(value, dict) and all(
        type(value.get(key)) in (int, float) and math.isfinite(value[key]) for key in _SCORE
    )
