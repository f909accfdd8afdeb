"""Scores a folder of drawings against the texts that they were drawn for, by a released CLIP or SigLIP."""

import json
import pathlib

from transfusion import storage
from transfusion.adapters.batches import RESULTS, is_result
from transfusion.adapters.lines import Line
from transfusion.data import images
from transfusion.errors import UsageError
from transfusion.evaluation.intervals import Score
from transfusion.evaluation.similarity import Similarity

SCORES = "similarity.json"


def score_drawings(
    model: Similarity, lines: list[Line], folder: pathlib.Path, seed: int = 0
) -> tuple[dict[str, Score], int]:
    """Scores the pictures of a folder that `batches` filled, each against the texts of its line.

    The result is written to similarity.json there, too.

    Returns:
      (the scores of `Similarity.scores`, how many pictures are not there yet).

    Raises:
      UsageError: if no picture of these lines is there, or one is damaged.
    """
    texts = {line.id: " ".join(part for part in line.parts if isinstance(part, str)) for line in lines}
    rows, _ = storage.read_json_lines(folder / RESULTS, is_result)
    newest = {(row["id"], row["sample"]): row for row in rows if row["id"] in texts}
    found = [
        (folder / row["files"][0], texts[row["id"]])
        for row in newest.values()
        if len(row["files"]) == 1 and row["files"][0].endswith(".png")
    ]
    if not found:
        raise UsageError(f"{folder} holds no pictures of these prompts: draw them with transfusion.sample --prompts")
    pictures = []
    for path, _ in found:
        try:
            pictures.append(images.decode(storage.read_bytes(path)))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
    scores = model.scores(pictures, [text for _, text in found], seed)
    about = {"model": str(model.folder), "pictures": len(found), "scores": scores}
    storage.write_whole(folder / SCORES, json.dumps(about, indent=2))
    return scores, sum(line.number for line in lines if line.task == "draw") - len(found)
