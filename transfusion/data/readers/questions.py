"""VQAv2 (arXiv 1612.00837): a picture, a question, and the answer that most people gave.

The source's `path` is the file of questions; the file of annotations lies beside it under its usual name. `files` is
the folder of the pictures.
"""

from collections.abc import Mapping, Sequence

from transfusion.data.foreign_text import decode_text, parse_json
from transfusion.data.segments import Read


def rows(content: object, beside: Read) -> Sequence[Mapping]:
    """One row per question, with the name of its picture and its answer."""
    split = content["data_subtype"]
    given = parse_json(decode_text(beside(f"v2_mscoco_{split}_annotations.json")))
    answers = {one["question_id"]: one["multiple_choice_answer"] for one in given["annotations"]}
    return [
        {
            "image": f"COCO_{split}_{one['image_id']:012}.jpg",
            "question": one["question"],
            "multiple_choice_answer": answers.get(one["question_id"]),
        }
        for one in content["questions"]
    ]


def read(row: Mapping[str, object]) -> dict:
    """A row of these, or of a Parquet file with the picture inside."""
    picture, question, answer = (row.get(name) for name in ("image", "question", "multiple_choice_answer"))
    if not picture or not question or not answer:
        raise ValueError("it lacks image, question or multiple_choice_answer")
    return {
        "segments": [
            {"image": picture, "turn": "user"},
            {"text": question, "turn": "user"},
            {"text": answer, "turn": "assistant"},
        ]
    }
