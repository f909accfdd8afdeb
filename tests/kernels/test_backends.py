"""Which attention a model gets, and that it is the same attention: in training, over a cache, on eight devices."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import BACKENDS
from packed_streams import by_streams
from program import environment

from transfusion.errors import UsageError
from transfusion.kernels.kernel import Layout
from transfusion.model import attention
from transfusion.model.attention import backend_of
from transfusion.programs import load_experiment
from transfusion.sequence.fakes import fake_batch
from transfusion.sequence.masks import metadata
from transfusion.tasks import make_task
from transfusion.training.step import make_init, make_step

LAYOUT = Layout((8,), (8,), 64, "float32")


def test_auto_takes_the_reference_on_a_cpu(capsys):
    assert backend_of("auto", LAYOUT) is attention.BACKENDS["dense"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "where", "changes", "message"),
    [
        ("triton", "cpu", {}, "'triton' runs on a gpu, and this is a cpu; set model.attention"),
        ("mosaic", "gpu", {}, "'mosaic' runs on a tpu, and this is a gpu"),
        ("auto", "gpu", {"size": 512}, "'triton' has no form for heads of 512 numbers: 256 is the most"),
        ("auto", "tpu", {"dtype": "float16"}, "'mosaic' computes in bfloat16 or float32, not in float16"),
    ],
)
def test_a_case_without_a_kernel_is_an_error_with_the_reason(monkeypatch, name, where, changes, message):
    monkeypatch.setattr(attention, "platform", lambda: where)
    with pytest.raises(UsageError, match=message):
        backend_of(name, dataclasses.replace(LAYOUT, **changes))


@pytest.mark.parametrize(("where", "name"), [("gpu", "triton"), ("tpu", "mosaic")])
def test_auto_takes_the_kernel_of_the_device_and_says_so_once(monkeypatch, capsys, where, name):
    attention._say.cache_clear()
    monkeypatch.setattr(attention, "platform", lambda: where)
    assert backend_of("auto", LAYOUT) is attention.BACKENDS[name]
    backend_of("auto", LAYOUT)
    assert capsys.readouterr().err == f"attention: {name!r}, because this is a {where}\n"


@pytest.mark.parametrize("name", ["triton", "mosaic"])
def test_a_cache_and_new_tokens_are_read_as_one(name):
    """Some tokens of each stream are new, and see the others in a cache, whose slots mix the streams."""
    rng = np.random.default_rng(0)
    tokens = by_streams(rng, 2, (24, 24))
    may = np.array([[1, 0], [1, 1]], bool)
    new, slots = jnp.array([*range(16, 24), *range(40, 48)]), jnp.asarray(rng.permutation([*range(16), *range(24, 40)]))
    q, k, v = (jnp.asarray(rng.standard_normal((2, 48, n, 16)), jnp.float32) for n in (4, 2, 2))
    layout = Layout((8, 8), (32,), 16, "float32")
    of = [jax.tree.map(lambda x, at=at: x[:, at], tokens) for at in (new, slots)]
    parts = [tuple(jnp.swapaxes(x[:, at], 1, 2) for x in (k, v)) for at in (slots, new)]

    def read(backend):
        plans = [backend.plan_read(of[0], there, may, dataclasses.replace(layout, k=n)) for there, n in (
            (of[1], (32,)), (of[0], (8, 8))
        )]  # fmt: skip
        return backend.read(q[:, new], parts, plans)

    ours, plain = (jax.jit(lambda b=b: read(b))() for b in (BACKENDS[name], attention.BACKENDS["dense"]))
    assert plain.any() and np.abs(ours - plain).max() <= 1e-5 * np.abs(plain).max()


# --- the rows of configs ----------------------------------------------------------------------------------------------

FORMS = sorted(
    f"{path.stem}.py:debug" for path in pathlib.Path("configs").glob("*.py") if '"debug"' in path.read_text()
)
QUICK = ("bagel.py:debug", "mogao.py:debug")


def rows_of(config: str):
    """Metadata of fake rows of a config, its `may`, and the sizes of its slices; None if it has no sequences."""
    task = make_task(load_experiment(f"configs/{config}"))
    if not hasattr(task, "spec"):
        return None
    return (
        metadata(fake_batch(task.spec, 1), task.spec),
        task.spec.visibility,
        tuple(stream.budget for stream in task.spec.streams.values()),
    )


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
@pytest.mark.parametrize("config", [pytest.param(f, marks=() if f in QUICK else pytest.mark.soak) for f in FORMS])
def test_the_rows_of_every_config(config, kernel):
    found = rows_of(config)
    if found is None:
        pytest.skip("no model of sequences")
    tokens, may, sizes = found
    rng = np.random.default_rng(0)
    q, k, v, do = (jnp.asarray(rng.standard_normal((1, sum(sizes), n, 16)), jnp.float32) for n in (2, 1, 1, 2))
    layout = Layout(sizes, sizes, 16, "float32")

    @functools.partial(jax.jit, static_argnums=0)
    def results(name):
        backend = BACKENDS.get(name) or attention.BACKENDS[name]
        planned = backend.plan(tokens, tokens, may, layout)
        out, back = jax.vjp(lambda q, k, v: backend.attend(q, k, v, planned), q, k, v)
        return out, *back(do)

    for ours, plain in zip(results(kernel), results("dense"), strict=True):
        assert np.linalg.norm(ours - plain) <= 1e-6 * np.linalg.norm(plain)


def test_twenty_steps_of_digits_are_those_of_dense_attention(monkeypatch):
    monkeypatch.setattr(attention, "BACKENDS", attention.BACKENDS | BACKENDS)
    experiment = load_experiment("configs/digits.py:debug")
    losses = {}
    for name in ("dense", "triton"):
        of = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention=name))
        task = make_task(of)
        state, step = jax.jit(make_init(task, of))(), jax.jit(make_step(task, of), donate_argnums=0)
        losses[name] = []
        for number in range(20):
            state = step(state, task.fake_batch(1, number))
            losses[name].append(float(state.log["loss"][0]))
    np.testing.assert_allclose(losses["triton"], losses["dense"], rtol=1e-5)


# --- eight devices ----------------------------------------------------------------------------------------------------


@functools.cache
def on_eight() -> dict:
    """What tests/kernels/kernels_on_eight.py prints: how far its results are from those of the reference."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = pathlib.Path(__file__).parent / "kernels_on_eight.py"
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | flags, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["context", "heads", "ring"])
def test_eight_devices_attend_as_one(how):
    for name, far in on_eight()[how].items():
        assert far <= 1e-6, name
