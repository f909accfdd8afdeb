"""Several processes compute what one does, begin only when they agree, and stop together."""

import json
import os
import signal
import socket
import threading
import time

import numpy as np
import processes
import pytest
import tiny
from closeness import assert_close, trunk_operations
from program import Forked, run_program

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.records import Records
from transfusion.errors import UsageError
from transfusion.running import agreement, distributed
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.metrics import FLOPS_PER_STEP, read_metrics
from transfusion.running.roll_call import roll_call
from transfusion.train import train

LOSSES = ("loss", "text_loss", "image_loss", "held_out_loss")


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.write_folder(tmp_path_factory.mktemp("processes") / "images")


# --- the same losses --------------------------------------------------------------------------------------------------


def on_processes(tmp_path, count: int, devices: int, **given) -> None:
    """Trains experiments of tests/processes.py further."""
    given |= {"coordinator": f"localhost:{free_port()}", "processes": count, "devices": devices}
    ranks = [
        Forked(tmp_path / f"{count}-{i}", "processes", json.dumps(given | {"index": i})) for i in range(count)
    ]  # fmt: skip
    for rank in ranks:
        assert (result := rank.result(600)).code == 0, result.err


@pytest.mark.slow
@pytest.mark.parametrize("names", [["dense"], pytest.param(["experts", "codes"], marks=pytest.mark.soak)])
def test_a_run_goes_on_with_other_processes_and_the_losses_of_one_device(names, folder, tmp_path):
    set_up_jax()
    whole, part = processes.experiments(folder, 6), processes.experiments(folder, 4)
    for name in names:
        train(whole[name], tmp_path / "one" / name)
    given = {"names": names, "folder": folder, "runs": str(tmp_path / "many")}
    on_processes(tmp_path, 2, 2, steps=2, mesh={"data": 2, "fsdp": 2}, **given)
    for name in names:
        train(part[name], tmp_path / "many" / name)
    # Pairs of processes feed the same rows.
    on_processes(tmp_path, 4, 1, steps=6, mesh={"data": 2, "tensor": 2}, **given)
    for name in names:
        one, many = (read_metrics(tmp_path / run / name / "metrics.jsonl") for run in ("one", "many"))
        assert [row["step"] for row in many] == [row["step"] for row in one] == list(range(1, 7))
        for key in LOSSES:
            values = [[row[key] for row in rows if key in row] for rows in (one, many)]
            assert len(values[0]) == (6 if key != "held_out_loss" else 3 if name == "dense" else 0)
            # Six steps, and so six times the roundings of one.
            assert_close(
                np.array(values[1]), np.array(values[0]), 6 * trunk_operations(whole[name].model, 128), note=key
            )
        assert len(set(row["loss"] for row in one)) == 6
        assert [row[FLOPS_PER_STEP] for row in many] == pytest.approx([row[FLOPS_PER_STEP] for row in one], rel=1e-12)


# --- the start --------------------------------------------------------------------------------------------------------


def calls(*given: tuple[int, int], timeout: float = 20) -> list[str]:
    """What processes, told (count, index), are answered."""
    answers, address = [""] * len(given), ("localhost", free_port())

    def call(place: int, count: int, index: int) -> None:
        try:
            roll_call(address, count, index, timeout)
        except UsageError as error:
            answers[place] = str(error)

    threads = [threading.Thread(target=call, args=(i, *one)) for i, one in enumerate(given)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_all_are_told_who_is_missing_or_was_told_something_else():
    assert calls((3, 1), (3, 0), (3, 2)) == ["", "", ""]
    assert calls((4, 0), (4, 2), timeout=2) == ["of 4 processes these have not started: 1, 3"] * 2
    for answer in calls((2, 0), (3, 1)):
        assert "process 1" in answer and "as one of 3 processes, process 0" in answer and "as one of 2" in answer
    assert "two processes were started as number 1" in calls((3, 0), (3, 1), (3, 1))[0]
    (answer,) = calls((2, 1), timeout=0.5)
    assert "process 1 cannot reach process 0 at localhost:" in answer and "within 0.5 seconds" in answer


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a,b", "SLURM_LOCALID": "0", "SLURM_PROCID": "1"}
JAX = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
TOLD = {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}
FLAGS = {"coordinator": "host:1", "processes": 2, "process_id": 1}


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, {}, None),
        (JAX, {"processes": 1}, None),
        (JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, {}, None),
        (SLURM | {"SLURM_NTASKS": "1"}, {}, None),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, {}, None),  # a batch script, not a step
        ({}, FLAGS, TOLD | {"cluster_detection_method": "deactivate"}),
        (JAX, {}, TOLD | {"cluster_detection_method": "deactivate"}),
        (MPI, {"coordinator": "host:1"}, TOLD | {"cluster_detection_method": None}),
        (SLURM | {"SLURM_NTASKS": "2"}, {}, {}),
        ({"JAX_PLATFORMS": "tpu,cpu"}, {}, {}),
        ({}, {"processes": 2, "process_id": 1}, "need --coordinator=HOST:PORT"),
        ({}, {"coordinator": "host", "processes": 2, "process_id": 1}, "'host' is not of the form HOST:PORT"),
        ({}, {"coordinator": "host:99999", "processes": 2, "process_id": 0}, "with a port from 1 to 65535"),
        ({"JAX_COORDINATOR_ADDRESS": "host:0"}, {}, "JAX_COORDINATOR_ADDRESS: 'host:0' is not"),
        ({}, {"coordinator": "host:1", "processes": 2}, "--coordinator needs --processes=N and --process_id"),
        ({}, {"coordinator": "host:1", "processes": 2, "process_id": 2}, "--process_id=2 is not below --processes=2"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, {}, "needs JAX_COORDINATOR_ADDRESS"),
        ({"JAX_NUM_PROCESSES": "two"}, {}, "needs JAX_COORDINATOR_ADDRESS"),
        (JAX | {"JAX_PROCESS_ID": "2"}, {}, "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=2 do not fit"),
        ({}, {"timeout": float("nan")}, "--start_timeout=nan is not between 0 and"),
        ({}, FLAGS | {"timeout": float("inf")}, "--start_timeout=inf is not between 0 and"),
    ],
)  # fmt: skip
def test_who_the_processes_are(monkeypatch, environment, flags, expected):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS", *MPI, *SLURM, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    begun = []
    monkeypatch.setattr(distributed, "_initialize", lambda **given: begun.append(given))
    monkeypatch.setattr(distributed, "roll_call", lambda *given: "")
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            distributed.start(**flags)
        return
    distributed.start(**flags)
    for given in begun:
        assert given.pop("initialization_timeout") > 300
    assert begun == ([] if expected is None else [expected])


def test_the_odd_process_is_named(monkeypatch):
    def start(*facts):
        everyone = [{"host": f"h{i}", "facts": one} for i, one in enumerate(facts)]
        monkeypatch.setattr(agreement, "gather", lambda value: everyone)
        agreement.check_same({})

    start({"seed": 0}, {"seed": 0})
    with pytest.raises(UsageError, match=r"^seed: 1 in process 0 \(h0\), but 0 in process 1 \(h1\): start all with"):
        start({"code": "a", "seed": 1}, {"code": "a", "seed": 0}, {"code": "a", "seed": 0})
    with pytest.raises(UsageError, match=r"model.x: 3 in process 1 \(h1\), but null in process 0 \(h0\)"):
        start({"seed": 0}, {"seed": 0, "model.x": 3})


CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import tiny
from transfusion.config import to_config_dict

def get_config():
    return to_config_dict(tiny.experiment("images", log_every=1))
"""


@pytest.fixture
def program(tmp_path):
    """`program(index, ...)` starts transfusion.train as one of two; `folders`: in which of them each finds its data."""
    (tmp_path / "small.py").write_text(CONFIG.format(tests=os.path.dirname(os.path.dirname(__file__))))
    port = free_port()
    flags = [f"--config={tmp_path / 'small.py'}", f"--workdir={tmp_path / 'run'}"]

    def start(index: int, *more: str, where) -> Forked:
        told = [f"--coordinator=localhost:{port}", "--processes=2", f"--process_id={index}"]
        return Forked(tmp_path / f"rank{index}", "transfusion.train", *flags, *told, *more, where=where)

    start.flags = flags
    return start


def test_other_data_on_one_machine_is_found_at_the_start(program, tmp_path):
    for number in range(2):
        tiny.write_folder(tmp_path / f"machine{number}" / "images", seed=number)
    ranks = [program(i, where=tmp_path / f"machine{i}") for i in range(2)]
    for rank in ranks:
        result = rank.result()
        assert result.code == 2
        line = result.err.strip().splitlines()[-1]
        assert line.startswith("error: records of data.sources.mine: ") and "in process 1 (" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    config = DataConfig(sources={"mine": SourceConfig(kind="folder", path=str(tmp_path / "machine0" / "images"))})
    found = Records(config, 0).fingerprint()["mine"]
    assert found == Records(config, 1).fingerprint()["mine"] and found.startswith("24, ")


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(program, tmp_path):
    tiny.write_folder(tmp_path / "images")
    ranks = [program(i, "--config.steps=100000", where=tmp_path) for i in range(2)]
    metrics, end = tmp_path / "run" / "metrics.jsonl", time.time() + 900
    while len(read_metrics(metrics)) < 3 and time.time() < end and all(rank.process.is_alive() for rank in ranks):
        time.sleep(0.1)
    os.kill(ranks[1].process.pid, signal.SIGTERM)
    results = [rank.result(900) for rank in ranks]
    assert [result.code for result in results] == [0, 0], results
    with Checkpoints(tmp_path / "run") as checkpoints:
        last = checkpoints.steps()[-1]
    assert all(f"stopped at step {last};" in result.err for result in results)
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, last + 1))
    # The next start may be of one process.
    more = [f"--config.data.sources.mine.path={tmp_path / 'images'}", f"--config.steps={last + 2}"]
    result = run_program(tmp_path, "transfusion.train", *program.flags, *more)
    assert result.code == 0 and f"at step {last}" in result.err, result.err
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, last + 3))
