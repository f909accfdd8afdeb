"""Scores of written captions against one or several references each: chrF and CIDEr-D.

An exact match counts a caption that says the same in other words as wrong; these count how much of the words is right.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfusion.errors import UsageError
from transfusion.evaluation.intervals import Score, bootstrap

References = Sequence[Sequence[str]]  # of each caption
CHARACTERS, BETA = 6, 2.0  # chrF2: up to six characters, recall counts twice
WORDS, SIGMA = 4, 6.0  # CIDEr-D: up to four words, and how fast a difference of lengths counts


def _check(captions: Sequence[str], references: References) -> None:
    if len(captions) != len(references) or not len(captions) or not all(len(of_one) for of_one in references):
        raise UsageError(f"{len(captions)} captions and {len(references)} lists of references: each needs at least one")


# --- chrF -------------------------------------------------------------------------------------------------------------


def _characters(text: str) -> list[Counter]:
    """How often each sequence of 1 to `CHARACTERS` characters occurs; white space does not count."""
    text = "".join(text.split())
    return [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, CHARACTERS + 1)]


def _matches(caption: str, reference: str) -> np.ndarray:
    """Of each length the numbers [6, 3] of sequences in the caption, in the reference, and in both.

    As in sacrebleu, sequences of a length that the reference does not reach are not counted against the caption.
    """
    pairs = zip(_characters(caption), _characters(reference), strict=True)
    return np.array([(a.total() * bool(b), b.total(), (a & b).total()) for a, b in pairs], np.float64)


def f_score(counts: np.ndarray) -> float:
    """chrF of numbers [6, 3], in 0 to 1: the F-score of the mean precision and recall over the lengths that occur in
    both texts."""
    there = (counts[:, 0] > 0) & (counts[:, 1] > 0)
    if not there.any():
        return 0.0
    precision, recall = (float(np.mean(counts[there, 2] / counts[there, side])) for side in (0, 1))
    if precision + recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def chrf(captions: Sequence[str], references: References, seed: int = 0) -> Score:
    """chrF2 of all captions together (Popovic 2015; the settings of sacrebleu), in 0 to 1.

    The sequences are counted over all captions, each against its best reference. Interval: bootstrap over captions.

    Raises:
      UsageError: if there are no captions, or one has no reference.
    """
    _check(captions, references)
    rows = []
    for caption, of_one in zip(captions, references, strict=True):
        rows.append(max((_matches(caption, reference) for reference in of_one), key=f_score))
    return bootstrap(np.stack(rows), lambda part: f_score(part.sum(0)), seed=seed)


# --- CIDEr ------------------------------------------------------------------------------------------------------------


def words(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation. (The original uses the Penn Treebank's tokenizer, a
    program in Java; for plain captions the words are the same.)"""
    return re.findall(r"\w+(?:'\w+)?", caption.lower())


def _phrases(caption: str) -> list[Counter]:
    found = words(caption)
    return [Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1)) for n in range(1, WORDS + 1)]


def cider_each(captions: Sequence[str], references: References) -> np.ndarray:
    """CIDEr-D of each caption, float64 [N] (Vedantam et al., arXiv 1411.5726, section 4.2 and the robust form of its
    section 6), in 0 to 10.

    Phrases of up to four words are weighted by how few images they describe, so the numbers of different sets of images
    do not compare, and those of few images mean little: of one image, all are 0.
    """
    _check(captions, references)
    described: Counter = Counter()
    phrases = [[_phrases(reference) for reference in of_one] for of_one in references]
    for of_one in phrases:
        described.update({phrase for of_reference in of_one for counts in of_reference for phrase in counts})
    log_images = math.log(len(captions))

    def weighted(counts: Counter) -> dict[tuple[str, ...], float]:
        return {phrase: n * (log_images - math.log(max(1, described[phrase]))) for phrase, n in counts.items()}

    def likeness(ours: list[Counter], theirs: list[Counter]) -> float:
        total, longer = 0.0, ours[0].total() - theirs[0].total()
        for mine, other in zip(map(weighted, ours), map(weighted, theirs), strict=True):
            lengths = math.hypot(*mine.values(), 0.0) * math.hypot(*other.values(), 0.0)
            if lengths:
                shared = mine.keys() & other.keys()
                total += sum(min(mine[phrase], other[phrase]) * other[phrase] for phrase in shared) / lengths
        return total / WORDS * math.exp(-(longer**2) / (2 * SIGMA**2))

    each = zip(map(_phrases, captions), phrases, strict=True)
    return np.array([10 * np.mean([likeness(ours, theirs) for theirs in of_one]) for ours, of_one in each])


def cider(captions: Sequence[str], references: References, seed: int = 0) -> Score:
    """The mean of `cider_each`. Interval: bootstrap over captions, with the weights of the phrases held fixed."""
    return bootstrap(cider_each(captions, references), seed=seed)


def caption_scores(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Score]:
    """{'caption_chrf', 'caption_cider'} of rows with a 'caption' and its 'reference'."""
    captions, references = [row["caption"] for row in rows], [[row["reference"]] for row in rows]
    return {"caption_chrf": chrf(captions, references, seed), "caption_cider": cider(captions, references, seed)}
