"""What programs set before JAX starts."""

import os

import jaxlib.version
import pytest

from transfusion.running.jax_setup import YNNPACK, compile_quickly, without_ynnpack


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


@pytest.mark.parametrize(
    "version, given, want",
    [
        ((0, 11, 0), "", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"),
        ((0, 11, 1), "--a=1", "--a=1 --xla_backend_optimization_level=0"),
        ((0, 11, 1), "--xla_backend_optimization_level=2", "--xla_backend_optimization_level=2"),
    ],
)
def test_quick_compilation_keeps_what_was_given_and_knows_the_flags_of_each_version(version, given, want, monkeypatch):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", given)
    compile_quickly()
    assert os.environ["XLA_FLAGS"] == want
