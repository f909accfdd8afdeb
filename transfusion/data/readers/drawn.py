"""Pictures that are drawn from an instruction and other pictures: OmniGen's and TUNA-2's JSON lines."""

import re
from collections.abc import Mapping

from transfusion.data.readers import conversations

_PLACE = re.compile(r"<img><\|image_(\d+)\|></img>")


def read_omnigen(row: Mapping[str, object]) -> dict:
    """OmniGen (arXiv 2409.11340): `instruction`, in which `<img><|image_1|></img>` stands for the first of
    `input_images`, and `output_image`. Only that one is learned."""
    instruction, given = row.get("instruction"), row.get("input_images") or []
    made = row.get("output_image") or row.get("output_images")
    if not isinstance(instruction, str) or not made or not isinstance(given, list):
        raise ValueError("it lacks instruction or output_image, or input_images is no list")
    pieces = _PLACE.split(instruction)  # text, number, text, number, ..., text
    named = [int(number) for number in pieces[1::2]]
    if sorted(set(named)) != list(range(1, len(given) + 1)) and named:
        raise ValueError(f"the instruction names the images {named}, and there are {len(given)}")
    segments = [] if named else [{"image": image, "role": "context", "loss": False} for image in given]
    for number, piece in enumerate(pieces):
        if number % 2:
            segments.append({"image": given[int(piece) - 1], "role": "context", "loss": False})
        elif piece.strip():
            segments.append({"text": piece.strip(), "loss": False})
    return {"segments": [*segments, {"image": made[0] if isinstance(made, list) else made, "role": "target"}]}


def read_tuna(row: Mapping[str, object]) -> dict:
    """TUNA-2 (arXiv 2604.24763): an edit (`instruction`, `raw_image`, `out_image`), a conversation about an `image`, or
    an `image` with its `caption`."""
    if row.get("conversations"):
        return conversations.read(row)
    if "out_image" not in row:
        if not row.get("image") or not row.get("caption"):
            raise ValueError("it is no edit (out_image), no conversation and no image with a caption")
        return {"image": row["image"], "caption": row["caption"]}
    words = {"text": row.get("instruction"), "loss": False}
    return {
        "segments": [
            words,
            {"image": row.get("raw_image") or "", "role": "context", "loss": False},
            {"image": row["out_image"] or "", "role": "target"},
        ]
    }
