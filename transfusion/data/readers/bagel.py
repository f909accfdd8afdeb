"""BAGEL's Parquet files (arXiv 2505.14683, and its public training code).

- Captions: `image`, and `captions`, a JSON table of several; a picture is drawn from one of them.
- Edits: `image_list` and `instruction_list`, the variants of what to do with each picture to get the next one.
- Thoughts and pictures in turn: `image_list`, `instruction_list` with one text, and `output_text_list`; each text that
  is learned is followed by the next picture, while there are any.

What is asked is not learned, what is drawn or thought is. `think`, where a row has it, is a thought before what is
drawn.
"""

import json
from collections.abc import Mapping


def read(row: Mapping[str, object]) -> dict:
    """One row of BAGEL's data as a record with segments; raises ValueError if it is none."""
    images = row.get("image_list")
    if images is None:
        return {
            "segments": [*_words(_captions(row)), *_thought(row), {"image": row.get("image") or "", "role": "target"}]
        }
    asked, said = row.get("instruction_list") or [], row.get("output_text_list")
    if not isinstance(images, list) or not images or not isinstance(asked, list):
        raise ValueError("image_list or instruction_list is no list")
    segments = [{"image": images[0], "role": "context", "loss": False}]
    if said is not None:
        segments += _words(asked[0] if asked else "")
        for number, text in enumerate(said, start=1):
            segments += [{"text": text}] * bool(text and text.strip())
            segments += [{"image": images[number], "role": "both"}] if number < len(images) else []
        return {"segments": segments}
    if len(asked) != len(images) - 1:
        raise ValueError(f"{len(images)} images and {len(asked)} instructions: there is one between each two images")
    for number, words in enumerate(asked, start=1):
        role = "both" if number < len(asked) else "target"
        segments += [*_words(words), *_thought(row), {"image": images[number], "role": role}]
    return {"segments": segments}


def _words(value: object) -> list[dict]:
    """What is asked: a text, or the variants of one."""
    return [{"text": value, "loss": False}] if value else []


def _thought(row: Mapping[str, object]) -> list[dict]:
    return [{"text": row["think"]}] if row.get("think") else []


def _captions(row: Mapping[str, object]) -> list[str]:
    captions = row.get("captions")
    try:
        found = json.loads(captions) if isinstance(captions, str) else captions
    except ValueError as error:
        raise ValueError("captions is no JSON") from error
    texts = list(found.values()) if isinstance(found, Mapping) else found
    if not isinstance(texts, list) or not texts:
        raise ValueError("captions is no table of captions")
    return texts
