"""What is sampled. Imports nothing of the library, so that it serves trees of any commit."""

import dataclasses
from typing import Any

SIZE = "0.76B"
TOKENS, STEPS, GUIDANCE, PROMPT = 256, 25, 3.0, 64
WORKS = [("text", 1), ("guided", 1), ("text", 16), ("guided", 16)]  # and rows; the most important first


def sampled(experiment: Any, work: str) -> Any:
    """An experiment whose sampler writes greedy text of `TOKENS` tokens, or draws one image with guidance."""
    fields = {
        "text": dict(max_tokens=TOKENS, max_images=0, temperature=0.0, guidance=1.0),
        "guided": dict(max_tokens=0, max_images=1, steps=STEPS, guidance=GUIDANCE, solver="ddim"),
    }[work]
    return dataclasses.replace(experiment, sampling=dataclasses.replace(experiment.sampling, **fields))
