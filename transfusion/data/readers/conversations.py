"""LLaVA's conversations (arXiv 2304.08485): `<image>` in a turn stands for the next picture of the row.

A row has `conversations`, a list of `{"from": "human" or "gpt" or "system", "value": ...}` (or `role` and `content`, or
the list `messages`), and its pictures in `image` or `images`, its clips in `video`.
"""

import re
from collections.abc import Mapping

TURNS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read(row: Mapping[str, object]) -> dict:
    """One row of LLaVA's conversations as a record with segments; raises ValueError if it is none."""
    said = row.get("conversations") or row.get("messages")
    if not isinstance(said, list) or not said:
        raise ValueError("conversations is no list of turns")
    media = {"image": _listed(row.get("image")) + _listed(row.get("images")), "clip": _listed(row.get("video"))}
    turns = [(one.get("from") or one.get("role"), one.get("value") or one.get("content") or "") for one in said]
    for speaker, value in turns:
        if speaker not in TURNS or not isinstance(value, str):
            raise ValueError(f"{speaker!r:.40} is none of {', '.join(TURNS)}, or says no text")
    marks = re.findall("<(image|video)>", "".join(value for _, value in turns))
    segments: list[dict] = []
    if not marks:  # pictures that no turn names stand before the first one of the user
        first = next((number for number, (speaker, _) in enumerate(turns) if TURNS[speaker] == "user"), 0)
        named = "<image>" * len(media["image"]) + "<video>" * len(media["clip"])
        turns[first] = (turns[first][0], named + turns[first][1])
    for speaker, value in turns:
        for piece in re.split("(<image>|<video>)", value):
            kind = {"<image>": "image", "<video>": "clip"}.get(piece)
            if kind and not media[kind]:
                raise ValueError(f"{piece} stands for one more {kind} than the row has")
            if kind or piece.strip():
                content = {kind: media[kind].pop(0)} if kind else {"text": piece.strip()}
                segments.append(content | {"turn": TURNS[speaker]})
    if left := [kind for kind, values in media.items() if values]:
        raise ValueError(f"the row has more {left[0]}s than its turns name")
    return {"segments": segments}


def _listed(value: object) -> list:
    return list(value) if isinstance(value, list) else [value] if value else []
