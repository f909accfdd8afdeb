import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.evaluation.intervals import bootstrap, jackknife, wilson


def test_wilson_matches_published_values():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 and 15 of 148.
    first, second = wilson(81, 263), wilson(15, 148)
    np.testing.assert_allclose([first["low"], first["high"]], [0.2553, 0.3662], atol=5e-5)
    np.testing.assert_allclose([second["low"], second["high"]], [0.0624, 0.1605], atol=5e-5)
    assert first["value"] == 81 / 263 and first["count"] == 263


def test_wilson_at_the_ends():
    all_right, none_right = wilson(20, 20), wilson(0, 20)
    assert all_right["high"] == 1 and 0.8 < all_right["low"] < 0.9
    assert none_right["low"] == 0 and none_right["high"] == pytest.approx(1 - all_right["low"])
    for successes, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(UsageError):
            wilson(successes, count)


def test_bootstrap_repeats_and_matches_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    first = bootstrap(values, seed=1)
    assert first == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    assert first["low"] < first["value"] < first["high"] and first["count"] == 400
    assert first["high"] - first["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap(values, np.median)["value"] == np.median(values)
    with pytest.raises(UsageError):
        bootstrap(np.zeros(0))


def test_bootstrap_is_over_rows():
    # Ten prompts whose four images agree carry ten samples, not forty.
    prompts = np.repeat(np.arange(10.0)[:, None], 4, axis=1)
    clustered, flat = bootstrap(prompts), bootstrap(prompts.reshape(-1))
    assert clustered["high"] - clustered["low"] > 1.7 * (flat["high"] - flat["low"])


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    result = jackknife(lambda keep: float(values[keep].mean()), 50, groups=50)
    assert result["value"] == pytest.approx(values.mean())
    assert result["high"] - result["value"] == pytest.approx(1.96 * values.std(ddof=1) / 50**0.5, rel=1e-3)
    with pytest.raises(UsageError):
        jackknife(lambda keep: 0.0, 1)
