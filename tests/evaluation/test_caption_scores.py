"""Scores of captions equal an independent implementation (chrF of sacrebleu), or the definition written out (CIDEr)."""

import math

import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.evaluation.caption_scores import chrf, cider, cider_each, words

CAPTIONS = ["a small red circle on a white ground", "two dogs", "A cat sits.", "x"]
REFERENCES = [
    ["a red circle", "a small circle of red on white"],
    ["two dogs are running", "dogs"],
    ["a dog sits", "the cat sits there"],
    ["nothing alike", "none"],
]


def test_chrf_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    for count in (1, 2, 4):
        theirs = sacrebleu.CHRF().corpus_score(
            CAPTIONS[:count], [list(r) for r in zip(*REFERENCES[:count], strict=True)]
        )
        ours = chrf(CAPTIONS[:count], REFERENCES[:count])
        assert 100 * ours["value"] == pytest.approx(theirs.score, abs=1e-9)
        assert ours["low"] <= ours["value"] <= ours["high"] and ours["count"] == count
    assert chrf(["the same"], [["the same"]])["value"] == 1 and chrf([""], [["a"]])["value"] == 0


def by_definition(captions, references):
    """CIDEr-D with one dense vector for each caption and each length of phrase."""
    result = []
    for caption, of_one in zip(captions, references, strict=True):
        likes = []
        for reference in of_one:
            like = 0.0
            for n in range(1, 5):
                grams = lambda text: [" ".join(words(text)[i : i + n]) for i in range(len(words(text)) - n + 1)]  # noqa: B023, E731
                table = sorted({g for text in [caption, *sum(references, [])] for g in grams(text)})
                seen = np.array([sum(any(g in grams(r) for r in refs) for refs in references) for g in table])
                idf = np.log(len(captions) / np.maximum(seen, 1))
                a, b = (np.array([grams(text).count(g) for g in table]) * idf for text in (caption, reference))
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                like += float(np.minimum(a, b) @ b / norm) / 4 if norm else 0.0
            longer = len(words(caption)) - len(words(reference))
            likes.append(10 * like * math.exp(-(longer**2) / 72))
        result.append(np.mean(likes))
    return result


def test_cider_is_the_definition():
    np.testing.assert_allclose(cider_each(CAPTIONS, REFERENCES), by_definition(CAPTIONS, REFERENCES), rtol=1e-12)
    same = cider(["a red cat", "two blue dogs here"], [["a red cat"], ["two blue dogs here"]])
    assert same["value"] == pytest.approx((7.5 + 10) / 2), "a caption of three words has no phrase of four"
    assert cider_each(["one"], [["one"]]) == [0], "of one image no phrase tells anything"


def test_captions_without_references_are_refused():
    for captions, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(UsageError):
            chrf(captions, references)
