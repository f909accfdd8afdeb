"""The rule of tests/closeness.py accepts what another processor may compute, and nothing that is wrong."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import naive
import numpy as np
import packed
import pytest
import tiny
from closeness import assert_close, assert_same, drawing_operations, trunk_operations

from transfusion.model import attention
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sequence import Segment, masks

TESTS = pathlib.Path(__file__).parent
ROWS = [[0, 3], [2], [1, 0]]
SPEC = tiny.SPECS["experts"]
TASK = tiny.task(SPEC, kv_heads=2, qk_norm="rms")
LENGTH = sum(stream.budget for stream in SPEC.streams.values())
OPERATIONS = trunk_operations(TASK.model, LENGTH)


@pytest.fixture(scope="module")
def params():
    """No zero among them, and none alike."""
    rng = np.random.default_rng(0)
    drawn = TASK.template.init(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), drawn)


def scores(params, task=TASK):
    """Loss, sums, logits and velocities of a batch: what most tests of models compare."""
    documents = tiny.documents()
    batch, drawn = packed.pack(ROWS, documents, packed.noise_of(documents), task.spec)

    def of(params):
        model = task.template.bind(params)
        encoded = model.encode({name: task.inputs(name, batch, drawn) for name in task.spec.streams})
        heads = {name: model.head(name, encoded[name]) for name in task.spec.streams}
        return task.loss(params, batch, drawn, task.totals(batch)), heads

    return jax.jit(of)(params)


@pytest.fixture(scope="module")
def right(params):
    return scores(params)


def differs(actual, expected, operations=OPERATIONS):
    with pytest.raises(AssertionError, match="roundings of"):
        assert_close(actual, expected, operations)


# --- the rule itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 1000, 100_000])
def test_sums_in_any_order_are_close(n):
    """Of numbers of one sign and of both, where little is left of what was added."""
    rng = np.random.default_rng(n)
    for x in (rng.uniform(0, 1, n), rng.standard_normal(n)):
        x = x.astype(np.float32)
        wide = x.astype(np.float64).sum()
        lanes = [x[i::16].cumsum(dtype=np.float32)[-1] for i in range(min(16, n))]  # as wide registers add
        orders = (x, x[::-1], np.sort(x), rng.permutation(x))
        for total in (*(order.cumsum(dtype=np.float32)[-1] for order in orders), np.float32(sum(lanes))):
            assert_close(total, wide, n, largest=np.abs(x).max() * n**0.5)
        differs(wide - x[0], wide, 10)  # a dropped term


def test_what_is_not_close_is_told():
    ours = {"a": np.ones(3, np.float32), "b": np.array([1.0, np.nan, 2.0], np.float32)}
    with pytest.raises(AssertionError, match="step 3 leaf 1 at .1.: nan is not 1.0"):
        assert_close(ours, {"a": np.ones(3), "b": np.array([1.0, 1.0, 2.0])}, 10, note="step 3")
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.ones((3, 1)), np.ones(3), 10)
    with pytest.raises(AssertionError, match="structure"):
        assert_close({"a": np.ones(3)}, {"b": np.ones(3)}, 10)
    with pytest.raises(AssertionError, match="mask"):
        assert_close(np.array([3.0, -1e30]), np.array([7.0, -1e30]), 10)
    differs(np.float32(1e-30), np.float32(0), 1000)  # what is zero is zero
    assert_close(np.float32(1e-7), np.float32(0), 1, largest=1)  # unless larger numbers met in it
    differs(np.array([100.0, 1.0]), np.array([100.0, 1.001]), 50)
    assert_close(np.array([100.0, 1.0]), np.array([100.0, 1.0001]), 50)


# --- other processors -------------------------------------------------------------------------------------------------


def reordered(params):
    """The same model with the numbers along its sums in another order: hidden units, head sizes, and words."""
    rng = np.random.default_rng(1)
    hidden = rng.permutation(TASK.model.hidden)
    blocks = {}
    for name, own in params["trunk"]["blocks"].items():
        blocks[name] = own | {
            "gate": own["gate"][..., hidden], "up": own["up"][..., hidden], "down": own["down"][:, hidden],
            "v": own["v"][..., ::-1], "o": own["o"][:, :, ::-1],
        }  # fmt: skip
    return params | {"trunk": params["trunk"] | {"blocks": blocks}}


def test_the_same_model_in_another_order_of_adding_is_close(params, right):
    other = scores(reordered(params))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(right), strict=True))
    assert_close(other, right, OPERATIONS)


def test_numpy_in_float64_and_a_wider_float_are_close(params, right):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        assert_close(right, jax.tree.map(np.asarray, scores(wide)), OPERATIONS)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def dropped(q, k, may=None, layout=None):
    """No token sees its own span."""
    return right_see(q, dataclasses.replace(k, span=jnp.zeros_like(k.span)), may)


def earlier_only(q, k, may=None, layout=None):
    """One key less: a token does not see itself, if it is outside of spans."""
    return right_see(dataclasses.replace(q, order=q.order - 1), k, may)


def both_ways(q, k, may=None, layout=None):
    return (q.document[:, :, None] == k.document[:, None]) & (q.document != 0)[:, :, None]


def across_documents(q, k, may=None, layout=None):
    one = [dataclasses.replace(x, document=jnp.minimum(x.document, 1)) for x in (q, k)]
    return right_see(*one, may)


right_see = masks.see


@pytest.mark.parametrize("wrong", [dropped, earlier_only, both_ways, across_documents])
def test_a_wrong_mask_is_not_close(monkeypatch, params, right, wrong):
    backend = dataclasses.replace(attention.BACKENDS["dense"], plan=wrong)
    monkeypatch.setitem(attention.BACKENDS, "dense", backend)
    (loss, _), heads = scores(params)
    differs(loss, right[0][0])
    assert any(fails(heads[name], right[1][name]) for name in heads)


def fails(actual, expected, operations=OPERATIONS):
    try:
        assert_close(actual, expected, operations)
    except AssertionError:
        return True
    return False


def with_blocks(params, change):
    """The parameters with `change` of {expert: {name: stacked weights}}."""
    return params | {"trunk": params["trunk"] | {"blocks": change(params["trunk"]["blocks"])}}


def with_weight(name, change, of="a"):
    return lambda blocks: blocks | {of: blocks[of] | {name: change(blocks[of][name])}}


MISTAKES = {
    "experts swapped": lambda blocks: {"a": blocks["b"], "b": blocks["a"]},
    "one expert's norm is the other's": lambda blocks: (
        blocks | {"a": blocks["a"] | {"ffn_norm": blocks["b"]["ffn_norm"]}}
    ),
    "layers swapped": lambda blocks: jax.tree.map(lambda w: w[::-1], blocks),
    "heads swapped": with_weight("q", lambda w: w[:, :, ::-1]),
    "a hidden unit dropped": with_weight("down", lambda w: w.at[1, 5].set(0)),
    "a scale dropped": with_weight("k_norm", jnp.ones_like),
    "one weight off by a hundredth of it": with_weight("v", lambda w: w.at[0, 3, 1, 2].multiply(1.01)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_weights_are_not_close(params, right, name):
    (_, _), heads = scores(with_blocks(params, MISTAKES[name]))
    assert fails(heads["text"], right[1]["text"]) or fails(heads["image"], right[1]["image"])


@pytest.mark.parametrize("name", ["bias", "time", "sincos"])
def test_a_dropped_term_of_an_embedding_or_a_head_is_not_close(params, right, name):
    part, task = params["parts"]["image"], TASK
    if name == "bias":
        part = part | {"head": part["head"] | {"bias": jnp.zeros_like(part["head"]["bias"])}}
    elif name == "time":
        part = part | {"time": jax.tree.map(jnp.zeros_like, part["time"])}
    else:
        image = dataclasses.replace(SPEC.streams["image"], table="none")
        spec = dataclasses.replace(SPEC, streams=dict(SPEC.streams) | {"image": image})
        task = tiny.task(spec, kv_heads=2, qk_norm="rms")
    (_, _), heads = scores(params | {"parts": params["parts"] | {"image": part}}, task)
    differs(heads["image"], right[1]["image"])


def test_a_token_that_is_left_out_of_a_loss_is_not_close(params, right):
    documents = tiny.documents()
    batch, drawn = packed.pack(ROWS, documents, packed.noise_of(documents), SPEC)
    total = TASK.totals(batch)
    text = np.asarray(batch["text"].loss_weight).copy()
    text[tuple(np.argwhere(text)[0])] = 0
    less = batch | {"text": dataclasses.replace(batch["text"], loss_weight=text)}
    loss, sums = jax.jit(TASK.loss)(params, less, drawn, total)
    differs(loss, right[0][0])
    differs(sums["text_loss"][0], right[0][1]["text_loss"][0])


def test_the_plain_model_with_a_wrong_rule_is_not_close(monkeypatch, params, right):
    """Of the reference that the packed streams are compared with: a rotation left out, and a private copy seen."""
    documents = tiny.documents()
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    experts = {stream: s.expert for stream, s in SPEC.streams.items()}

    def text_loss():
        total = 0
        for d in (d for row in ROWS for d in row):
            tokens = naive.tokens(documents[d])
            hidden = naive.forward(wide, tokens, TASK.model, experts, *packed.noise_of(documents)[d])
            total += naive.losses(wide, tokens, hidden, "image")[0][0]
        return total

    assert_close(right[0][1]["text_loss"][0], text_loss(), OPERATIONS)
    monkeypatch.setattr(naive, "turn", lambda x, position, theta: x)
    differs(right[0][1]["text_loss"][0], text_loss())


def test_a_gradient_that_lacks_a_term_is_not_close(monkeypatch):
    """As a custom gradient may forget one: here that of the softmax's normaliser."""
    rng = np.random.default_rng(0)
    x, upstream = rng.standard_normal((2, 5, 40)).astype(np.float32)

    def through(softmax):
        return jax.grad(lambda x: jnp.sum(softmax(x) * upstream))(x)

    def forgetful(x):
        exp = jnp.exp(x)
        return exp / jax.lax.stop_gradient(exp.sum(-1, keepdims=True))

    def plain(x):
        exp = jnp.exp(x)
        return exp / exp.sum(-1, keepdims=True)

    assert_close(through(plain), through(jax.nn.softmax), 2 * 40 + 16)
    differs(through(forgetful), through(jax.nn.softmax), 2 * 40 + 16)


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_a_drawing_with_another_mask_scale_or_step_is_not_close(monkeypatch, params):
    """The loosest tolerance, of many passes in sequence, still tells each of these apart."""
    prompts = [Prompt((Segment("text", np.array([5, 6, 7], np.int32)),), draw=True)]
    sampler = SamplerConfig(steps=3, max_tokens=0, guidance=2.0)

    def draw(params=params, **changes):
        return generate(TASK, params, prompts, 3, dataclasses.replace(sampler, **changes))[0]

    drawn, operations = draw(), drawing_operations(TASK, sampler)
    assert_same(draw(reordered(params)), drawn, operations)
    unit = with_blocks(
        params, lambda blocks: blocks | {"b": blocks["b"] | {"down": blocks["b"]["down"].at[1, 5].set(0)}}
    )
    wrong = [with_blocks(params, MISTAKES[name]) for name in ("experts swapped", "layers swapped")] + [unit]
    others = [draw(weights) for weights in wrong]
    others += [draw(guidance=2.1), draw(steps=4), draw(guidance_low=0.5)]
    for other in others:
        with pytest.raises(AssertionError, match="roundings of"):
            assert_same(other, drawn, operations)


# --- `make portable` --------------------------------------------------------------------------------------------------

COMPILE = """
import os, sys
import jax, tiny
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
print(os.environ["XLA_FLAGS"])
"""


def test_flags_add_up_and_a_processor_s_programs_are_its_own(tmp_path):
    programs, told = [], []
    for isa in ("SSE4_2", "AVX2", "AVX2"):
        given = {
            "XLA_FLAGS": f"--xla_cpu_max_isa={isa}",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        }
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, tmp_path],
            env=os.environ | given,
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(done.stdout.split())
        programs.append({path.name for path in tmp_path.glob("jit__lambda*-cache")})
    assert [flags[0] for flags in told] == [f"--xla_cpu_max_isa={isa}" for isa in ("SSE4_2", "AVX2", "AVX2")]
    assert all("--xla_backend_optimization_level=0" in flags for flags in told) and told[0][1:] == told[1][1:]
    assert [len(names) for names in programs] == [1, 2, 2]
