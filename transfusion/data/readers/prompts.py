"""The prompt files of GenEval (arXiv 2310.11513): `evaluation_metadata.jsonl`, or a text with a prompt in each line.

A prompt is a text; what the picture must show stays in the file, for the judge.
"""

from collections.abc import Mapping, Sequence

from transfusion.data.segments import Read


def rows(content: object, beside: Read) -> Sequence[Mapping]:
    if not isinstance(content, str):
        return content
    return [{"prompt": line.strip()} for line in content.splitlines() if line.strip()]


def read(row: Mapping[str, object]) -> dict:
    if not row.get("prompt"):
        raise ValueError("it has no prompt")
    return {"text": row["prompt"]}
