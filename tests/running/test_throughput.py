"""Speed: pauses and compilation do not count; the peak is that of a data sheet, or unknown."""

import time
import types

import jax
import pytest

from transfusion.running.memory import device_memory
from transfusion.running.throughput import Idle, Throughput, model_flops_utilisation, peak_flops


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
    names = ("steps_per_second", "tokens_per_second", "seconds_per_step", "data_wait_share")
    assert speed.rates() == dict(zip(names, (2.0, 200.0, 0.5, 0.0), strict=True))
    clock.now += 1
    speed.add(tokens=50, steps=4)
    speed.starved(0.75)
    assert speed.rates() == dict(zip(names, (4.0, 50.0, 0.25, 0.75), strict=True))


class Step:
    """A result that is there after some seconds."""

    def __init__(self, seconds: float):
        self.end = time.perf_counter() + seconds

    def is_ready(self):
        return time.perf_counter() >= self.end


class Slow:
    def __iter__(self):
        time.sleep(0.3)
        yield "batch"


@pytest.mark.parametrize(("seconds", "waits"), [(-1, (0.3, 30)), (1000, (0, 0)), (0.1, (0.01, 0.21))])
def test_a_wait_for_data_counts_from_when_the_devices_are_done(seconds, waits):
    """At once, never, or after some of the 0.3 s in which the data is read."""
    idle = Idle()
    batch, starved = idle.read(iter(Slow()), Step(seconds))
    idle.close()
    assert batch == "batch" and waits[0] <= starved <= waits[1]


def test_memory_is_that_of_the_fullest_device_where_devices_tell(monkeypatch):
    assert device_memory() == {}  # a CPU does not
    told = [{"bytes_in_use": 5, "peak_bytes_in_use": 9}, {"bytes_in_use": 7, "peak_bytes_in_use": 8}]
    devices = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in told]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"device_memory_bytes": 7, "device_memory_peak_bytes": 9}


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
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("TPU7x", 1153.5e12),
        ("AMD Instinct MI300X", 1307.4e12),
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
