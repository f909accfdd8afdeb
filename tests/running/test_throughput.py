"""Speed: pauses and compilation do not count; the peak is that of a data sheet, or unknown."""

import types

import jax
import pytest

from transfusion.running.throughput import Throughput, model_flops_utilisation, peak_flops


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_compilation_and_pauses_do_not_count():
    clock = Clock()
    speed = Throughput(clock)
    speed.add(tokens=1000)  # the compiling step
    clock.now += 60
    assert set(speed.rates().values()) == {None}
    speed.begin()
    for _ in range(4):
        clock.now += 0.5
        speed.add(tokens=100)
    with speed.paused():
        clock.now += 30
    assert speed.rates() == {"steps_per_second": 2.0, "tokens_per_second": 200.0, "seconds_per_step": 0.5}
    clock.now += 1
    speed.add(tokens=50, steps=4)
    assert speed.rates() == {"steps_per_second": 4.0, "tokens_per_second": 50.0, "seconds_per_step": 0.25}


def test_a_pause_that_fails_ends():
    clock = Clock()
    speed = Throughput(clock)
    speed.begin()
    with pytest.raises(KeyError), speed.paused():
        clock.now += 5
        raise KeyError
    clock.now += 1
    speed.add(tokens=1)
    assert speed.rates()["steps_per_second"] == 1.0


def device(kind, platform="tpu"):
    return types.SimpleNamespace(device_kind=kind, platform=platform, process_index=0)


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
    ],
)
def test_peak_of_known_accelerators(kind, flops):
    assert peak_flops([device(kind)] * 4) == 4 * flops


def test_a_cpu_and_an_unknown_accelerator_have_no_peak():
    assert peak_flops([device("TPU v99")]) is None
    assert peak_flops(jax.devices("cpu")) is None
    assert model_flops_utilisation(1e12, 1.0, None) is None


def test_model_flops_utilisation():
    assert model_flops_utilisation(2e12, 0.5, 8e12) == 0.5
    assert model_flops_utilisation(2e12, None, 8e12) is None
