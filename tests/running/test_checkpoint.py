"""Checkpoints: what is saved comes back exactly, and nothing that a crash or a bad disk leaves behind does."""

import dataclasses
import json
import logging as std_logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.running import checkpoint as checkpoint_lib
from transfusion.running import restore as restore_lib
from transfusion.running import seals
from transfusion.running.checkpoint import CheckpointConfig, CheckpointError, Checkpoints
from transfusion.running.restore import read_config, restore_params

CONFIG = {"seed": 0, "model": {"width": 64}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict | None
    key: jax.Array


def make_state(step: int, size: int = 64) -> State:
    draws = jax.random.normal(jax.random.key(step), (size, size))
    params = {"text": {"w": draws, "b": draws[0].astype(jnp.bfloat16)}, "scale": jnp.float32(step)}
    opt_state = ((), {"mu": jax.tree.map(lambda x: 2 * x, params)}, jnp.int32(step))
    return State(jnp.int32(step), params, opt_state, jax.tree.map(lambda x: x + 1, params), jax.random.key(7))


def counted(state: State, step: int) -> State:
    """The state with another count of its steps."""
    return dataclasses.replace(state, step=jnp.int32(step))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x, np.float64), np.asarray(y, np.float64))


def save_steps(workdir, *steps: int, keep: int = 5) -> pathlib.Path:
    with Checkpoints(workdir, CheckpointConfig(every=100, keep=keep)) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step), {"next": step * 8}, CONFIG)
    return pathlib.Path(workdir) / "checkpoints"


def restored(workdir) -> tuple:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(abstract(make_state(0)))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A work directory with checkpoints 100, 200, 300; tests copy it."""
    path = tmp_path_factory.mktemp("three")
    save_steps(path, 100, 200, 300)
    return path


@pytest.fixture
def workdir(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def messages():
    """Returns what the program logged so far."""
    records = []
    handler = std_logging.Handler(std_logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    std_logging.getLogger("absl").addHandler(handler)
    yield records
    std_logging.getLogger("absl").removeHandler(handler)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip_is_exact_with_keys_bfloat16_none_and_empty_tuples(tmp_path):
    state = dataclasses.replace(make_state(3), ema=None)
    data_state = {"next": 2**60 + 1, "sources": {"digits": [1, 2]}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        assert not checkpoints.save(3, state, data_state, CONFIG)  # not due
        assert checkpoints.save(3, state, data_state, CONFIG, force=True)
        assert not checkpoints.save(3, state, data_state, CONFIG, force=True)  # saved already
    with Checkpoints(tmp_path) as checkpoints:
        step, back, data, config = checkpoints.restore(abstract(state))
    assert (step, data, config) == (3, data_state, CONFIG)
    assert_same(back, state)
    assert jax.random.bits(back.key) == jax.random.bits(state.key)
    assert read_config(tmp_path) == CONFIG


def test_donated_buffers_do_not_change_what_is_being_saved(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = bump({"w": jnp.zeros((2000, 2000))})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {}, {})
        for _ in range(10):
            state = bump(state)
        jax.block_until_ready(state)
    _, params, _ = restore_params(tmp_path, "w")
    assert np.all(np.asarray(params) == 1)


def test_keeps_the_newest_and_deletes_only_after_the_newer_is_sealed(tmp_path, monkeypatch):
    root = tmp_path / "checkpoints"
    write_seal = checkpoint_lib.write_seal

    def slow(folder, step):
        assert step == 0 or seals.damage(folder, step - 1) is None  # the older one is still there
        write_seal(folder, step)

    monkeypatch.setattr(checkpoint_lib, "write_seal", slow)
    with Checkpoints(tmp_path, CheckpointConfig(every=1, keep=1)) as checkpoints:
        for step in range(3):
            checkpoints.save(step, make_state(step), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2]
    assert seals.steps_on_disk(root) == [2] and [p.name for p in root.glob(".seal-*")] == [".seal-2.json"]


def test_check_seals_a_save_without_waiting_for_the_next(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(0), {}, {})
        for _ in range(200):
            checkpoints.check()
            if seals.damage(tmp_path / "checkpoints", 0) is None:
                break
            time.sleep(0.05)
        assert seals.damage(tmp_path / "checkpoints", 0) is None


def test_leaving_by_an_exception_still_finishes_the_save(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(0, 512), {}, {})
        raise KeyboardInterrupt
    assert seals.damage(tmp_path / "checkpoints", 0) is None


def test_restores_onto_another_mesh(three, tmp_path):
    program = """
import sys, jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
sys.path.insert(0, sys.argv[2])
import test_checkpoint as t
assert jax.device_count() == 8
def placed(mesh):
    spec = lambda x: P('data') if x.ndim == 1 else P('data', 'tensor') if x.ndim == 2 else P()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(x))),
                        t.abstract(t.make_state(0)))
for shape in ((4, 2), (2, 4)):
    mesh = jax.make_mesh(shape, ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    with t.Checkpoints(sys.argv[1]) as checkpoints:
        step, state, _, _ = checkpoints.restore(placed(mesh))
        assert state.params['text']['w'].sharding == placed(mesh).params['text']['w'].sharding
        t.assert_same(state, t.counted(t.make_state(300), step))
        step += shape[0]
        checkpoints.save(step, t.counted(state, step), {}, {}, force=True)
"""
    shutil.copytree(three, tmp_path / "run")
    # This process' flags too: random numbers differ in the last bit between levels of optimization.
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
    arguments = [sys.executable, "-c", program, str(tmp_path / "run"), str(pathlib.Path(__file__).parent)]
    subprocess.run(arguments, env=environment, check=True, timeout=120)
    step, state, _, _ = restored(tmp_path / "run")  # 8 devices -> 1
    assert step == 306
    assert_same(state, counted(make_state(300), 306))


def flip(root):
    file = largest_file(root / "300")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(root):
    file = largest_file(root / "300")
    os.truncate(file, file.stat().st_size - 1)


def empty_step(root):
    (root / "300").rename(root / "9000")
    shutil.rmtree(root / "9000")
    (root / "900").mkdir()


DAMAGES = {
    "a flipped byte": (flip, "checkpoint 300 is damaged (file state/", "checksum differs"),
    "a truncated file": (truncate, "checkpoint 300 is damaged (file state/", "bytes instead of"),
    "a deleted file": (lambda root: largest_file(root / "300").unlink(), "300 is damaged (file state/", "missing"),
    "a missing folder": (lambda root: shutil.rmtree(root / "300" / "state"), "300 is damaged (file state/", "missing"),
    "broken data json": (lambda r: (r / "300/data/metadata").write_text('{"next": 240O}'), "data/metadata", "differs"),
    "another data json": (lambda r: (r / "300/data/metadata").write_text('{"next": 2401}'), "data/metadata", "differs"),
    "an empty step folder": (empty_step, "checkpoint 900 is damaged", "no checksums"),
    "no seal": (lambda root: (root / ".seal-300.json").unlink(), "checkpoint 300 is damaged", "not finished"),
    "a broken seal": (lambda r: (r / ".seal-300.json").write_text("{"), "checkpoint 300 is damaged", "unreadable"),
    "an empty seal": (lambda r: (r / ".seal-300.json").write_text('{"files": {}}'), "checkpoint 300", "unreadable"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_falls_back_to_the_newest_intact_checkpoint_and_says_so(name, workdir, messages):
    act, *words = DAMAGES[name]
    act(workdir / "checkpoints")
    step, params, _ = restore_params(workdir, "params")  # a reader changes nothing
    assert step == 200 and read_config(workdir) == CONFIG
    assert_same(params, make_state(200).params)
    assert sum(path.is_dir() for path in (workdir / "checkpoints").iterdir()) == 3
    messages.clear()
    with Checkpoints(workdir, CheckpointConfig(every=1)) as checkpoints:
        step, state, data_state, _ = checkpoints.restore(abstract(make_state(0)))
        assert step == 200 and data_state == {"next": 1600}
        assert_same(state, make_state(200))
        (said,) = messages
        assert all(word in said for word in words) and said.endswith("falling back to 200"), said
        assert checkpoints.steps() == [100, 200]
        again = counted(make_state(301), 300)
        assert checkpoints.save(300, again, {}, {})  # the same step again
    step, state, _, _ = restored(workdir)
    assert step == 300
    assert_same(state, again)


def test_two_damaged_checkpoints_are_both_named(workdir, messages):
    for step in (200, 300):
        largest_file(workdir / "checkpoints" / str(step)).unlink()
    assert restored(workdir)[0] == 100
    assert sum("falling back to 100" in text for text in messages) == 2


def test_nothing_intact_is_an_error_that_lists_them_and_deletes_nothing(workdir):
    for path in (workdir / "checkpoints").glob(".seal-*"):
        path.unlink()
    for read in (restored, read_config, restore_params):
        with pytest.raises(UsageError, match=r"no intact checkpoint in .*: 300 \(no checks.*200 \(no.*100 \(") as error:
            read(workdir)
        assert "\n" not in str(error.value)
    assert seals.steps_on_disk(workdir / "checkpoints") == [100, 200, 300]


def test_no_checkpoint_at_all(tmp_path):
    assert restored(tmp_path) is None
    with pytest.raises(UsageError, match="no checkpoint in .* train first"):
        read_config(tmp_path)


KILLED = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[3])
import test_checkpoint as t
from transfusion.running import checkpoint
last = {'seal': 2, 'first seal': 1}.get(sys.argv[2])
write = checkpoint.write_seal
checkpoint.write_seal = lambda root, step: time.sleep(600) if step == last else write(root, step)
with t.Checkpoints(sys.argv[1], t.CheckpointConfig(every=1)) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, t.make_state(step, 1500), {'next': step}, t.CONFIG)
        checkpoints.wait()
"""


def reached(point: str, root: pathlib.Path) -> bool:
    unfinished = [p for p in root.glob("2.orbax-checkpoint-tmp*") if p.is_dir()]
    if point == "begin":
        return bool(unfinished)
    if point == "arrays":
        try:
            return any(f.stat().st_size > 2**20 for p in unfinished for f in p.rglob("*") if f.is_file())
        except OSError:
            return False
    return (root / ("1" if point == "first seal" else "2")).is_dir()


def test_kill_minus_9_during_a_save_leaves_the_previous_checkpoint(tmp_path, messages):
    points = ("begin", "arrays", "seal", "first seal")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    folder = str(pathlib.Path(__file__).parent)

    def save(point: str) -> subprocess.Popen:
        command = [sys.executable, "-c", KILLED, str(tmp_path / point), point, folder]
        return subprocess.Popen(command, env=environment)

    running = {point: save(point) for point in points}
    deadline = time.monotonic() + 120
    while running:
        assert time.monotonic() < deadline, f"never came to {list(running)}"
        for point, process in list(running.items()):
            if reached(point, tmp_path / point / "checkpoints"):
                process.send_signal(signal.SIGKILL)
                if running.pop(point).wait() == -signal.SIGKILL:
                    continue
            if process.poll() is not None:  # on a busy machine this process may sleep through what it waits for
                shutil.rmtree(tmp_path / point)
                running[point] = save(point)
        time.sleep(0.001)
    want = make_state(1, 1500)
    for point in points:
        root = tmp_path / point / "checkpoints"
        assert bool(list(root.glob("*tmp*"))) == ("seal" not in point)  # killed where it was meant to be
        with Checkpoints(tmp_path / point, CheckpointConfig(every=1)) as checkpoints:
            assert not list(root.glob("*tmp*"))
            if point == "first seal":  # as if nothing had been saved
                assert checkpoints.restore(abstract(want)) is None
                assert checkpoints.save(1, want, {}, {})
                continue
            step, state, data_state, _ = checkpoints.restore(abstract(want))
            assert (step, data_state) == (1, {"next": 1})
            assert_same(state, want)
            assert checkpoints.save(2, state, {}, {})
        assert not list(root.glob(".saving*"))
    assert messages == [f"checkpoint {step} was not finished, and is removed" for step in (2, 1)]


def test_rollback_makes_room_for_the_same_steps(workdir):
    with Checkpoints(workdir, CheckpointConfig(every=50)) as checkpoints:
        with pytest.raises(CheckpointError, match="step 300 exists already"):
            checkpoints.save(150, make_state(1), {}, {})
        with pytest.raises(CheckpointError, match=r"roll back to step 150: checkpoints are at \[100, 200, 300\]"):
            checkpoints.rollback(150)
        checkpoints.rollback(100)
        assert checkpoints.steps() == [100]
        assert checkpoints.save(150, make_state(150), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [100, 150]
    assert restored(workdir)[0] == 150


def with_params(**changes):
    state = make_state(0)
    return dataclasses.replace(state, params=state.params | changes)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (lambda: with_params(scale=jnp.zeros(3)), r"params/scale is float32\[\] in the checkpoint and float32\[3\] in"),
        (lambda: with_params(scale=jnp.bfloat16(0)), r"params/scale is float32\[\] in .* and bfloat16\[\] in this run"),
        (lambda: with_params(extra=jnp.zeros(3)), "params/extra is not in the checkpoint"),
        (lambda: dataclasses.replace(make_state(0), ema=None), "ema/.* is in the checkpoint only .and 2 more"),
        (lambda: make_state(0, 32), r"params/text/b is bfloat16\[64\] in .* and bfloat16\[32\] in this run"),
    ],
)
def test_a_state_of_another_form_is_one_line_that_names_the_leaf(wanted, message, three):
    with Checkpoints(three) as checkpoints, pytest.raises(UsageError, match=message) as error:
        checkpoints.restore(abstract(wanted()))
    assert str(error.value).startswith("checkpoint 300 does not fit this config: ") and "\n" not in str(error.value)
    assert seals.steps_on_disk(three / "checkpoints") == [100, 200, 300]


def test_restore_params_reads_one_part(three):
    step, ema, config = restore_params(three)
    assert (step, config) == (300, CONFIG)
    assert_same(ema, make_state(300).ema)
    _, text, _ = restore_params(three, "params/text")
    assert_same(text, make_state(300).params["text"])
    _, leaf, _ = restore_params(three, "params/text/b")
    assert leaf.dtype == jnp.bfloat16 and leaf.shape == (64,)
    with pytest.raises(UsageError, match="checkpoint 300 has no 'parms' .did you mean 'params'"):
        restore_params(three, "parms")


def test_restore_params_does_not_read_the_optimizer(workdir, monkeypatch):
    read = []
    original = restore_lib._read_item
    monkeypatch.setattr(restore_lib, "_read_item", lambda *a: read.append(original(*a)) or read[-1])
    restore_params(workdir, "params")
    step, params, config = read
    assert set(step) == {"step"} and set(params) == {"params"} and config == CONFIG


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(0, make_state(0), {"next": np.int64(1)}, CONFIG)
        assert checkpoints.steps() == []


def test_config_is_checked():
    with pytest.raises(UsageError, match="checkpoint.keep must be at least 1, not 0"):
        CheckpointConfig(keep=0)


def test_synchronous_saves_are_sealed_on_return(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(asynchronous=False)) as checkpoints:
        checkpoints.save(0, make_state(0), {}, {})
        assert seals.damage(tmp_path / "checkpoints", 0) is None
        files = json.loads((tmp_path / "checkpoints/.seal-0.json").read_text())["files"]
    assert {"data/metadata", "config/metadata", "state/_METADATA"} <= files.keys()
