"""What programs set before JAX starts."""

import os

import jaxlib.version
import pytest

from transfusion.running.jax_setup import YNNPACK, without_ynnpack


@pytest.mark.parametrize(
    "version, given, want",
    [
        ((0, 10, 2), "--a=1", f"--a=1 {YNNPACK}="),
        ((0, 10, 2), f"{YNNPACK}=individual_dot", f"{YNNPACK}=individual_dot"),
        ((0, 12, 0), "--a=1", "--a=1"),
    ],
)
def test_ynnpack_is_left_out_where_it_is_slow_and_nobody_asked_for_it(version, given, want, monkeypatch):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", given)
    without_ynnpack()
    assert os.environ["XLA_FLAGS"] == want
