"""The kernel distance: the published estimator, unbiased, with intervals that hold the truth."""

import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.evaluation.kernel import kernel_distance, kernel_score


def test_it_is_the_published_estimator():
    """As clean-fid's kernel_distance computes it for one subset of all images."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 5))
    m, d = x.shape
    a = (x @ x.T / d + 1) ** 3 + (y @ y.T / d + 1) ** 3
    b = (x @ y.T / d + 1) ** 3
    theirs = ((a.sum() - np.diag(a).sum()) / (m - 1) - b.sum() * 2 / m) / m
    assert kernel_distance(x, y) == pytest.approx(theirs)
    slow = [((p @ q) / d + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(x[:7]) if i != j]
    assert kernel_distance(x, x[:7] + 1) > kernel_distance(x, x[:7]) and len(slow) == 203


def test_it_is_unbiased_and_its_interval_holds_the_truth():
    """Two samples of one distribution have a distance of 0 on average, whatever their size; the interval holds 0 in
    about 95 of 100 draws, and does not where the distributions differ."""
    rng = np.random.default_rng(1)
    values, inside = [], 0
    for _ in range(60):
        scores = kernel_score(rng.normal(size=(40, 4)), rng.normal(size=(50, 4)))["distance"]
        values.append(scores["value"])
        inside += scores["low"] <= 0 <= scores["high"]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5 and inside >= 48
    far = kernel_score(rng.normal(size=(60, 4)) + 2, rng.normal(size=(80, 4)))
    assert far["distance"]["low"] > 0 and far["floor"]["low"] < 0.5 < far["distance"]["value"]
    assert far["distance"]["count"] == 60 and far["floor"]["count"] == 40


@pytest.mark.parametrize("shapes", [((3, 4), (8, 4)), ((8, 4), (8, 5)), ((8,), (8, 4))])
def test_what_cannot_be_compared_is_refused(shapes):
    with pytest.raises(UsageError):
        kernel_score(*(np.zeros(shape) for shape in shapes))
    with pytest.raises(UsageError, match="finite"):
        kernel_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
