"""What programs set before JAX starts."""

import os

import jaxlib.version
import pytest

from transfusion.running.jax_setup import YNNPACK, compile_quickly, without_ynnpack

QUICK = "--xla_backend_optimization_level"
OLDER = "--xla_cpu_use_fusion_emitters"


@pytest.mark.parametrize(
    "sets, version, given, want",
    [
        (without_ynnpack, (0, 10, 2), "--a=1", f"--a=1 {YNNPACK}="),
        (without_ynnpack, (0, 10, 2), f"{YNNPACK}=individual_dot", f"{YNNPACK}=individual_dot"),
        (without_ynnpack, (0, 12, 0), "--a=1", "--a=1"),
        (compile_quickly, (0, 11, 0), "", f"{QUICK}=0 {OLDER}=false"),
        (compile_quickly, (0, 11, 1), "--a=1", f"--a=1 {QUICK}=0"),
        (compile_quickly, (0, 11, 1), f"{QUICK}=2", f"{QUICK}=2"),
    ],
)
def test_flags_are_those_that_a_version_knows_and_never_those_that_were_given(sets, version, given, want, monkeypatch):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", given)
    sets()
    assert os.environ["XLA_FLAGS"] == want
