"""Plans: the real step compiled for devices that are not there, and what is said where that cannot be."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
from program import environment, run_program

from transfusion import plan
from transfusion.planning import compiled
from transfusion.programs import load_experiment
from transfusion.running.chips import GIB, parse_topology

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.slow
def test_the_step_and_the_sampler_compile_for_a_mesh():
    script = pathlib.Path(__file__).with_name("plan_on_eight.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    step, guess, sampler, *parts = json.loads(done.stdout)
    assert step["how"] == step["collectives"] == "compiled" and guess["how"] == "from shapes"
    # But for the counters of the state, memory's arguments are what the shardings say.
    assert step["arguments"] == pytest.approx(guess["arguments"], abs=300)
    # The new state lies where the old one was.
    assert step["peak"] == pytest.approx(step["arguments"] + step["temporaries"], rel=0.01) and step["temporaries"] > 0
    found = step["program"]["collectives"]
    assert step["program"]["unknown_loops"] == 0
    # Weights are gathered over fsdp in every layer, forwards and backwards; gradients are summed over data, between the
    # two slices of four devices.
    assert sum(c["times"] == 3 and c["kind"] == "all-gather" and c["group"] == 4 for c in found) >= 2
    assert any(c["kind"] == "all-reduce" and c["far"] for c in found)
    # Of the sum of a matrix's gradient over fsdp each device receives its own part: of two experts, three layers, four
    # matrices of 32 x 32 and three of 32 x 96, in float32.
    scattered = sum(c["times"] * c["size"] for c in found if c["kind"] == "reduce-scatter" and c["group"] == 4)
    assert scattered == 2 * 3 * (4 * 32 * 32 + 3 * 32 * 96) * 4
    assert sampler["how"] == "compiled" and 0 < sampler["arguments"] < step["arguments"]
    # Of a tower and of a codec weights travel, and rows stay where they are.
    assert len(parts) == 2
    for few, many in parts:
        assert many == pytest.approx(few, rel=0.01) and few > 0


def test_a_plan_for_gpus_is_told_from_shapes(tmp_path):
    topologies = "h100:8,v5p:2x2x2"
    arguments = [f"--config={CONFIGS / 'transfusion_paper.py'}:7B", "--config.batch_size=16", "--nocompile"]
    done = run_program(
        tmp_path, "transfusion.plan", *arguments, f"--topology={topologies}", f"--json={tmp_path}/p.json"
    )
    assert done.code == 0, done.err
    assert "h100:8: 8 devices of 75 GiB" in done.out and "from shapes only" in done.out and "suggested: " in done.out
    gpu, tpu = json.loads((tmp_path / "p.json").read_text())
    assert gpu["devices"] == tpu["devices"] == 8 and gpu["step"]["how"] == "from shapes"
    # The parameters (with a vocabulary of bytes) in float32, once, and the average and two moments.
    assert gpu["state"]["parameters"] == pytest.approx(6.5e9 * 4 / 8, rel=0.02)
    assert gpu["state"]["optimizer"] == pytest.approx(3 * gpu["state"]["parameters"], rel=1e-6)
    assert "FLOPs counted on rows of one document each, an upper bound, for the data cannot be read: " in done.out
    # 6 FLOPs per parameter and token, and attention besides.
    assert 1 < gpu["step"]["flops"] / (6 * 6.5e9 * 16 * 4096) < 1.2
    assert gpu["step"]["seconds_at_least"]["step"] > gpu["step"]["flops"] / 8 / 989e12
    wrong = run_program(tmp_path, "transfusion.plan", *arguments, "--topology=v5p:8x8x7")
    assert wrong.code == 2 and wrong.err.count("\n") == 1
    assert "'v5p:8x8x7' is none of v5p:2x2x1" in wrong.err and "did you mean 'v5p:8x8x8'" in wrong.err


def test_what_is_missing_is_said(monkeypatch):
    experiment = load_experiment(f"{CONFIGS / 'digits.py'}:debug")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'transfusion[plan-gpu]'" in compiled.can_compile(parse_topology("a100:4"))
    result = plan.plan(experiment, parse_topology("v5e:2x2"), plan.Compilation())
    assert "pip install 'transfusion[tpu]'" in plan.plan_text(result) and "libtpu" in result["not_compiled_because"]
    assert result["suggestion"]["how"] == "from shapes" and result["largest_batch"] >= 4
    assert plan.plan_table([result, result]).count("| v5e:2x2 |") == 2


@pytest.mark.parametrize("form", ["transfusion_paper.py:7B", "bagel.py:7b"])
def test_the_large_configs_fit_a_pod(form):
    result = plan.plan(load_experiment(CONFIGS / form), parse_topology("v5p:8x8x8"), plan.Compilation(compile=False))
    assert result["step"]["fits"] and result["step"]["peak"] < 20 * GIB
    if form.startswith("bagel"):  # two experts: twice the parameters, the same FLOPs for each token
        assert result["state"]["parameters"] == pytest.approx(14.7e9 * 4 / 128, rel=0.03)
        assert 0.8 < result["step"]["flops"] / (6 * 6.5e9 * 512 * 4096) < 1.2
