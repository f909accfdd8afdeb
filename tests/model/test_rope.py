import numpy as np
import pytest
from closeness import assert_close

from transfusion.model.rope import angles, rotate, turns


def test_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(i, j):
        at = [rotate(x, turns(angles(np.array([[[p]]]), 8, 10_000.0))) for x, p in ((q, i), (k, j))]
        return float((at[0] * at[1]).sum())

    # An angle of 105 is off by up to 105 eps, and so are its sine, and each of the terms, which are at most |q| |k|.
    assert_close(score(5, 2), score(105, 102), 2 * 105 + 8, largest=np.linalg.norm(q) * np.linalg.norm(k))
    assert abs(score(5, 2) - score(5, 3)) > 1e-3
    np.testing.assert_array_equal(rotate(q, turns(angles(np.zeros((1, 1, 1), np.int32), 8, 10_000.0))), q)


def test_each_axis_turns_its_own_section():
    position = np.array([[[1, 10, 100]]])
    even = np.asarray(angles(position, 16, 10_000.0))[0, 0]
    frequency = 10_000.0 ** (-np.arange(8) / 8)
    wanted = np.array([1, 1, 1, 1, 10, 10, 100, 100]) * frequency
    assert_close(even / wanted, 1, 16)  # each of them: small frequencies count as much as large ones
    own = np.asarray(angles(position, 16, 10_000.0, (2, 3, 3)))[0, 0]
    assert_close(own / (np.array([1, 1, 10, 10, 10, 100, 100, 100]) * frequency), 1, 16)
    # Equal coordinates, as text has them, give plain one-dimensional positions.
    text = angles(np.full((1, 1, 3), 7), 16, 10_000.0)
    np.testing.assert_array_equal(text, angles(np.full((1, 1, 1), 7), 16, 10_000.0))


def test_sections_must_add_up():
    with pytest.raises(ValueError, match="sections"):
        angles(np.zeros((1, 1, 2), np.int32), 8, 10_000.0, (1, 1))
