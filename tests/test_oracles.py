"""Every output of every oracle, within its tolerance: one test per oracle of the folder."""

import re

import jax
import numpy as np
import pytest
from oracles import FOLDER, Oracle, checks, find_oracles

FOUND = find_oracles()


@pytest.mark.parametrize(("path", "about"), [found[1:] for found in FOUND], ids=[found[0] for found in FOUND])
def test_oracle(path, about, tmp_path):
    oracle = Oracle(path, about, tmp_path)
    found = [check for pattern, check in checks().items() if re.match(pattern, oracle.source)]
    assert len(found) == 1, f"{len(found)} checks know the source {oracle.source!r}"
    with jax.default_matmul_precision("highest"):
        ours = found[0](oracle)
    missing = oracle.outputs.keys() - ours.keys()
    assert not missing, f"not computed: {sorted(missing)}"
    for name, value in oracle.outputs.items():
        got = np.asarray(ours[name])
        assert got.shape == value.shape, f"{name}: {got.shape}, not {value.shape}"
        if name in about.get("exact", ()):
            np.testing.assert_array_equal(got, value, err_msg=name)
        else:
            # The tolerance comes with the oracle: twenty times what its own float32 is off from its float64.
            np.testing.assert_allclose(got, value, **about["tol"][name], err_msg=name)


def test_there_are_oracles():
    if not FOUND:
        pytest.skip(f"no oracles in {FOLDER} (set TRANSFUSION_ORACLES)")
    assert all(path.with_suffix(".npz").is_file() for _, path, _ in FOUND)
