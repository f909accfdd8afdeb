"""How GPUs are described to the compiler, and what is read of its reports. `test_gates.py` compiles."""

import importlib.metadata
import importlib.util

import pytest

from transfusion.planning import gpus
from transfusion.planning.assembly import KernelUse, read_report, uses_text
from transfusion.planning.hlo import read_program
from transfusion.running.chips import CHIPS

# Shortened from `ptxas -v`.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attend_keys' for 'sm_90a'
ptxas info    : Function properties for attend_keys
    152 bytes stack frame, 256 bytes spill stores, 292 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 152 bytes cumulative stack size
ptxas info    : Compiling entry function 'attend' for 'sm_90a'
ptxas info    : Function properties for attend
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 164 registers, used 1 barriers
"""
# Shortened from a step compiled for h100:8: the results of what begins a collective have its operands beside them.
STARTS = """\
ENTRY %main.1 (param: bf16[8]) -> bf16[8] {
  %all-gather-start.1 = ((bf16[128,64]{1,0}, bf16[128,64]{1,0}), (bf16[1024,64]{1,0}, bf16[1024,64]{1,0})) all-gather-start(%a, %b), replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={0}
  %reduce-scatter-start = ((bf16[1024,64]{1,0}), bf16[128,64]{1,0}) reduce-scatter-start(%c), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}
  %all-reduce-start = bf16[2048]{0} all-reduce-start(%d), replica_groups=[1,8]<=[8]
  %all-to-all-start = ((bf16[64]{0}), bf16[64]{0}) all-to-all-start(%e), replica_groups=[1,8]<=[8], dimensions={0}
}
"""  # noqa: E501


def test_every_gpu_that_a_plan_can_name_has_a_description():
    assert set(gpus.TARGETS) == {name for name, chip in CHIPS.items() if not chip.shapes}
    for name, target in gpus.TARGETS.items():
        chip = CHIPS[name]
        # Data sheets round; the driver keeps some memory for itself, or counts in GiB what they sell as GB.
        assert target.memory == pytest.approx(chip.memory, rel=0.08)
        assert target.bandwidth == pytest.approx(chip.bandwidth, rel=0.05)
        assert any(kind in target.name for kind in chip.kinds)
        assert f"major: {target.capability}" in gpus.description(target)


def test_without_the_compiler_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpus.missing() == "the CUDA compiler is not installed: pip install 'transfusion[plan-gpu]'"

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    assert "ptxas" in gpus.missing() and gpus.missing().endswith("pip install 'transfusion[plan-gpu]'")


def test_the_assembler_says_registers_and_spills_of_each_kernel():
    assert read_report(REPORT) == {"attend_keys": (255, 256), "attend": (164, 0)}
    uses = [KernelUse("attend", 164, 0, {"wgmma.mma_async": 24}), KernelUse("copy", 8, 0, {})]
    assert uses_text(uses) == [
        "attend: 164 registers, 0 B spilled, 24 wgmma",
        "copy: 8 registers, 0 B spilled, no products",
    ]


def test_what_begins_a_collective_counts_the_larger_side_once():
    found = {c.kind: c for c in read_program(STARTS, devices=8, per_slice=8).collectives}
    assert found["all-gather"].size == 2 * 1024 * 64 * 2
    assert found["reduce-scatter"].size == 1024 * 64 * 2
    assert found["all-reduce"].size == 2048 * 2 and found["all-to-all"].size == 64 * 2
    assert all(c.group == 8 for c in found.values())
