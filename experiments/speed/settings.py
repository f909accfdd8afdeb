"""What is sampled. Imports nothing of the library, so that it serves trees of any commit."""

from typing import Any

TOKENS, STEPS, GUIDANCE, PROMPT = 256, 25, 3.0, 64


def sampling(work: str) -> dict[str, Any]:
    """Fields of the sampler's config for greedy text of `TOKENS` tokens, or for one image with guidance."""
    return {
        "text": dict(max_tokens=TOKENS, max_images=0, temperature=0.0, guidance=1.0),
        "guided": dict(max_tokens=0, max_images=1, steps=STEPS, guidance=GUIDANCE, solver="ddim"),
    }[work]
