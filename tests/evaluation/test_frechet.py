import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.evaluation.frechet import frechet_distance, frechet_score, gaussian_distance, square_root


def covariance(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or size))
    return factor @ factor.T


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b = rng.uniform(0, 4, 6), rng.uniform(0, 4, 6)
    mean1, mean2 = rng.normal(size=(2, 6))
    expected = ((mean1 - mean2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = gaussian_distance(mean1, (basis * a) @ basis.T, mean2, (basis * b) @ basis.T)
    assert got == pytest.approx(expected, rel=1e-9)


def test_general_covariances_agree_with_the_eigenvalues_of_the_product():
    rng = np.random.default_rng(1)
    c1, c2 = covariance(rng, 5), covariance(rng, 5)
    # tr (C1 C2)^(1/2) is the sum of the roots of the (real, positive) eigenvalues of the product itself.
    cross = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    zero = np.zeros(5)
    assert gaussian_distance(zero, c1, zero, c2) == pytest.approx(np.trace(c1 + c2) - 2 * cross, rel=1e-9)
    np.testing.assert_allclose(square_root(c1) @ square_root(c1), c1, atol=1e-10)


def test_distance_is_a_symmetric_zero_at_equality():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(40, 8)), rng.normal(0.5, 2, size=(60, 8))
    assert frechet_distance(first, first) < 1e-9
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
    shifted = first + np.array([3.0] + [0.0] * 7)
    assert frechet_distance(first, shifted) == pytest.approx(9)


def test_singular_covariances_stay_finite_and_not_negative():
    # Fewer images than features, features of very different size, and constant ones.
    rng = np.random.default_rng(3)
    features = rng.normal(size=(10, 64)) * np.logspace(-8, 4, 64)
    features[:, 5] = 1.0
    assert 0 <= frechet_distance(features, features) < 1e-4
    assert frechet_distance(np.ones((4, 3)), np.zeros((4, 3))) == pytest.approx(3)


def test_score_puts_perfect_images_at_the_floor_and_bad_ones_above():
    rng = np.random.default_rng(4)
    real, same, other = rng.normal(size=(800, 6)), rng.normal(size=(300, 6)), rng.normal(0.5, 1, size=(300, 6))
    good, bad = frechet_score(same, real), frechet_score(other, real)
    assert good["distance"]["count"] == good["floor"]["count"] == 300
    assert good["floor"] == bad["floor"]
    assert good["distance"]["value"] < 2 * good["floor"]["value"] < bad["distance"]["low"]
    assert good == frechet_score(same, real)


def test_floor_uses_disjoint_halves():
    rng = np.random.default_rng(5)
    real = rng.normal(size=(40, 3))
    assert frechet_score(real, real)["floor"]["count"] == 20
    assert frechet_score(real, real)["floor"]["value"] > 1e-3


def test_wrong_inputs_are_refused():
    ones = np.ones((10, 3))
    with pytest.raises(UsageError, match="cannot be compared"):
        frechet_score(ones, np.ones((10, 4)))
    with pytest.raises(UsageError, match="at least 4"):
        frechet_score(np.ones((3, 3)), ones)
    with pytest.raises(UsageError, match="finite"):
        frechet_distance(ones * np.nan, ones)
