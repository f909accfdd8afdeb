"""Feed-forward layers as sums of shared, by stream and routed experts: what they compute, and that none is dropped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.evaluation.sections.experts import last_loads
from transfusion.model import expert_products, experts
from transfusion.model.config import TransformerConfig
from transfusion.model.expert_products import feed_forwards
from transfusion.model.experts import FeedForwardConfig, Routed, Shared, balanced
from transfusion.model.parameters import Template, bound, pure
from transfusion.planning.shapes import Sharding, estimate, state_bytes
from transfusion.running.chips import parse_topology

E, D, F, K = 5, 16, 24, 3
TRUNK = TransformerConfig(width=D, layers=1, heads=2, ffn=F)


def routed(**changes) -> FeedForwardConfig:
    return FeedForwardConfig(**{"experts": E, "top": K} | changes)


def layer(config: FeedForwardConfig, **changes) -> Routed:
    """One layer of routed experts, with random weights and biases that matter."""
    trunk = dataclasses.replace(TRUNK, **changes)
    template = Template(lambda rngs: Routed(trunk, config, rngs))
    weights = jax.tree.map(lambda w: w[0], template.init(jax.random.key(0)))
    noise = {n: 0.1 * jax.random.normal(jax.random.key(len(n)), w.shape) for n, w in weights.items() if "bias" in n}
    return template.bind(weights | noise)


SIGMOID = layer(routed(score="sigmoid"))
REAL = jnp.ones((2, 7), bool)


def tokens(rows: int, length: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, length, D))


# --- tied to the dense layer ------------------------------------------------------------------------------------------


def tied(dense: dict, template: dict) -> dict:
    """The dense model's parameters for one whose experts are all that model's feed-forward layer."""
    trunk, shapes = dict(dense["trunk"]), template["trunk"]
    (block,) = trunk["blocks"].values()
    names = shapes["blocks"].items()
    trunk |= {"blocks": {expert: {n: block[n] for n in weights} for expert, weights in names}}
    trunk |= {"final_norm": {expert: trunk["final_norm"]["trunk"] for expert in shapes["final_norm"]}}

    def of(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if "router" in name:
            return jax.random.normal(jax.random.key(len(name)), shape.shape)
        return jnp.broadcast_to(block[name][:, None], shape.shape)

    layers = {at: {n: of(n, s) for n, s in weights.items()} for at, weights in shapes["feed_forwards"].items()}
    return dense | {"trunk": trunk | {"feed_forwards": layers}}


LAYERS = {
    "softmax": (routed(), {}),
    "sigmoid, one of all": (routed(score="sigmoid", top=1), {}),
    "without a gate, with biases": (routed(), {"ffn_kind": "gelu_tanh", "biases": ("ffn",)}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_experts_that_are_all_equal_are_the_dense_layer_to_the_bit(name):
    config, changes = LAYERS[name]
    trunk = dataclasses.replace(TRUNK, **changes)
    dense = Template(lambda rngs: Shared(trunk, FeedForwardConfig("shared"), rngs))
    weights = jax.tree.map(lambda w: w[0] + 0.1, dense.init(jax.random.key(1)))
    of = layer(config, **changes)
    same = {n: jnp.broadcast_to(w[None], (E, *w.shape)) for n, w in weights.items()}
    of = bound(of, {n: same.get(n, w) for n, w in pure(of).items()})
    x, real = tokens(3, 50), jnp.ones((3, 50), bool)
    want = jax.jit(lambda w, x: dense.bind(w)(x, real)[0])(weights, x)
    got = jax.jit(lambda w, x: bound(of, w)(x, real)[0])(pure(of), x)
    np.testing.assert_array_equal(got, want)


def test_a_model_of_equal_experts_is_the_dense_model_to_the_bit():
    dense = tiny.task(tiny.SPECS["transfusion"])
    mixture = tiny.task(tiny.SPECS["transfusion"], feed_forwards={"all": routed()}, ffn_absent=("trunk",))
    params = jax.jit(dense.template.init)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    batch = dense.fake_batch(3)

    @functools.partial(jax.jit, static_argnums=0)
    def hidden(task, params):
        draws = task.draw(batch, jax.random.key(1))
        encoded = task.template.bind(params).encode({n: task.inputs(n, batch, draws) for n in task.spec.streams})
        return {n: y.hidden for n, y in encoded.items()}

    want, got = hidden(dense, params), hidden(mixture, tied(params, mixture.template.shapes))
    for stream, part in batch.items():
        np.testing.assert_array_equal(got[stream][part.document != 0], want[stream][part.document != 0])


# --- what a set computes ----------------------------------------------------------------------------------------------


def by_hand(of: Routed, x: np.ndarray) -> np.ndarray:
    """The output for one token, in NumPy and float64: the definition."""
    w = {n: np.asarray(getattr(of, n)[...], np.float64) for n in ("router", "gate", "up", "down")}
    logits, config = x @ w["router"], of.config
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    scores = scores if config.score == "softmax" else 1 / (1 + np.exp(-logits))
    bias = 0 if of.router_bias is None else np.asarray(of.router_bias[...])
    best = np.argsort(-(scores + bias))[: config.top]
    shares = scores[best] / (scores[best].sum() if config.renormalise else 1)
    gates = [x @ w["gate"][e] for e in best]
    outputs = [(g / (1 + np.exp(-g)) * (x @ w["up"][e])) @ w["down"][e] for g, e in zip(gates, best, strict=True)]
    return config.factor * np.sum(shares[:, None] * np.array(outputs), 0)


CONFIGS = {
    "as published for DeepSeek-V3": routed(score="sigmoid", factor=2.5),
    "as in Qwen3-MoE": routed(balance=0.0),
    "not renormalised": routed(renormalise=False, balance=0.0),
    "one of all": routed(top=1, renormalise=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_gets_the_weighted_sum_of_its_best_experts(name):
    of, x = layer(CONFIGS[name]), tokens(2, 7)
    got, chosen = of(x, REAL)
    assert chosen.shape == (2, 7, of.config.top)
    want = np.array([[by_hand(of, token) for token in row] for row in np.asarray(x, np.float64)])
    assert_close(got, want, 2 * D + F + E)


@pytest.mark.parametrize("name", ["ragged", "tiles"])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_the_plain_reference(monkeypatch, name, biased):
    """Outputs and gradients; also where some tokens have no expert here, as on a device that holds others."""
    of = layer(routed(), biases=("ffn",) if biased else ())
    weights = {n: getattr(of, n)[...] for n in expert_products.AXES if getattr(of, n) is not None}
    x = tokens(2, 70)
    ids = jax.random.randint(jax.random.key(1), (2, 70, K), 0, E + 1).at[0, :5].set(2)
    real = (ids < E)[..., None]

    def outputs(way: str):
        def loss(x, weights):
            monkeypatch.setattr(expert_products, "_backend", lambda: way)
            y = jnp.where(real, feed_forwards(x, ids, weights, jax.nn.silu), 0)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, weights)

    assert_close(outputs(name), outputs("every"), 140 * K + 2 * D + F)


def test_no_token_is_dropped_however_many_choose_one_expert():
    of, x = layer(routed(top=1, balance=0.0)), tokens(1, 300)
    of.router[...] = jnp.zeros((D, E)).at[:, 3].set(1.0)
    x = jnp.abs(x)  # so that all choose expert 3
    got, chosen = of(x, jnp.ones((1, 300), bool))
    assert (chosen == 3).all()
    gate, up, down = (getattr(of, name)[...][3] for name in ("gate", "up", "down"))
    assert_close(got, (jax.nn.silu(x @ gate) * (x @ up)) @ down, D + F)
    assert np.abs(np.asarray(got)).min(-1).max() > 0


@functools.partial(jax.jit, static_argnums=0)
def routes(of: Routed, x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    return of(x, real)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_token_is_routed_alike_in_any_row_and_batch(data):
    """To the bit, whatever lies beside it and however much: packed, padded, permuted, alone."""
    of, count = SIGMOID, 40
    pool = tokens(1, count, seed=7)[0]
    want, chosen = routes(of, pool[None], jnp.ones((1, count), bool))
    rows, length = data.draw(st.sampled_from([(1, 1), (1, 12), (3, 40), (2, 100)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    which, real = rng.integers(0, count, (rows, length)), rng.random((rows, length)) < data.draw(st.floats(0.1, 1))
    got, other = routes(of, pool[which], jnp.asarray(real))
    np.testing.assert_array_equal(other[real], chosen[0][which][real])
    np.testing.assert_array_equal(got[real], want[0][which][real])
    assert (other[~real] == E).all() and not np.asarray(got)[~real].any()


def test_padding_has_no_load_and_changes_nothing():
    of = tiny.SPECS["experts"]
    task = tiny.task(of, feed_forwards={"all": routed(), "common": FeedForwardConfig("shared", ffn=8)})
    params, batch = jax.jit(task.template.init)(jax.random.key(0)), task.fake_batch(3)
    real = {name: int((part.document != 0).sum()) for name, part in batch.items()}
    assert all(real[name] < part.document.size for name, part in batch.items())

    @jax.jit
    def loss(batch):
        draws = task.draw(batch, jax.random.key(1))
        return jax.value_and_grad(task.loss, has_aux=True)(params, batch, draws, task.totals(batch))

    (_, sums), grads = want = loss(batch)
    for name, count in real.items():
        shares, weight = sums[f"{name}_all_load"]
        assert shares.sum() == weight[0] == count * K * task.model.layers
    (loads,) = sums["statistics"].values()
    np.testing.assert_array_equal(loads.sum(-1), sum(real.values()) * K)
    assert not np.asarray(grads["trunk"]["feed_forwards"]["all"]["router_bias"]).any()
    assert np.asarray(grads["trunk"]["feed_forwards"]["all"]["router"]).any()
    text = batch["text"]
    other = dataclasses.replace(text, tokens=np.where(text.document == 0, (text.tokens + 3) % 8, text.tokens))
    jax.tree.map(np.testing.assert_array_equal, loss(batch | {"text": other}), want)


def test_a_feed_forward_layer_is_the_sum_of_what_a_stream_passes():
    """Text: shared, its own and routed; images: shared only, as their own is absent."""
    shared, own = FeedForwardConfig("shared", ffn=8), routed(streams=("text",))
    task = tiny.task(tiny.SPECS["experts"], layers=1, feed_forwards={"common": shared, "words": own}, ffn_absent=("b",))
    params, batch = jax.jit(task.template.init)(jax.random.key(0)), task.fake_batch(2)

    def loads_and_hidden(params):
        inputs = {n: task.inputs(n, batch, task.draw(batch, jax.random.key(1))) for n in task.spec.streams}
        encoded, loads = task.template.bind(params).encode_counted(inputs)
        return {n: y.hidden for n, y in encoded.items()}, loads

    def without(name: str, at: str):
        trunk = params["trunk"]
        part = trunk[at][name]
        return params | {"trunk": trunk | {at: trunk[at] | {name: part | {"down": jnp.zeros_like(part["down"])}}}}

    whole, loads = loads_and_hidden(params)
    assert loads["trunk"].keys() == {"words"} and loads["trunk"]["words"].keys() == {"text"}
    for name, at, streams in (
        ("common", "feed_forwards", {"text", "image"}), ("words", "feed_forwards", {"text"}), ("a", "blocks", {"text"}),
    ):  # fmt: skip
        less, _ = loads_and_hidden(without(name, at))
        assert {s for s in whole if (less[s] != whole[s]).any()} == streams
    assert "down" not in params["trunk"]["blocks"]["b"]


# --- the balance ------------------------------------------------------------------------------------------------------


def test_biases_even_out_the_loads_without_a_gradient():
    config = routed(experts=8, top=2, score="sigmoid", balance=0.02)
    of, x = layer(config), tokens(4, 64) + 1.0  # a common part, so that some experts are liked by all
    largest = []
    of.router_bias[...] = jnp.zeros(8)
    for _ in range(60):
        seen = experts.load(of.choose(x)[0], 8)
        assert seen.sum() == 4 * 64 * 2
        largest.append(float(seen.max() / seen.mean()))
        of.router_bias[...] = balanced(of.router_bias[...][None], seen[None], config)[0]
    assert largest[0] > 2 and largest[-1] < 1.3


def test_the_loads_of_microbatches_and_frozen_biases():
    """Statistics of parts of a batch add up to those of the whole; biases that are frozen are not there to be moved."""
    task = tiny.task(tiny.SPECS["transfusion"], feed_forwards={"all": routed(balance=0.5)})
    params, batch = jax.jit(task.template.init)(jax.random.key(0)), task.fake_batch(4)
    draws = task.draw(batch, jax.random.key(1))

    @jax.jit
    def statistics(batch, draws):
        return task.loss(params, batch, draws, task.totals(batch))[1]["statistics"]

    halves = [statistics(*jax.tree.map(lambda x, i=i: x[i::2], (batch, draws))) for i in range(2)]
    whole = statistics(batch, draws)
    jax.tree.map(lambda a, b, c: np.testing.assert_array_equal(a + b, c), *halves, whole)
    moved = task.after_step(params, jax.tree.map(lambda p: p + 1, params), whole)
    (loads,), old, new = whole.values(), *(p["trunk"]["feed_forwards"]["all"] for p in (params, moved))
    np.testing.assert_array_equal(
        new["router_bias"], old["router_bias"] + 0.5 * np.sign(loads.mean(-1)[:, None] - loads)
    )
    np.testing.assert_array_equal(new["router"], old["router"] + 1)
    some = {"parts": params["parts"]}
    assert task.after_step(some, some, whole).keys() == {"parts"}


# --- costs and refusals -----------------------------------------------------------------------------------------------


def test_flops_count_the_experts_that_a_token_takes():
    dense, of = tiny.task(ffn=48), tiny.SPECS["transfusion"]
    mixture = tiny.task(of, ffn=48, ffn_absent=("trunk",), feed_forwards={
        "all": routed(ffn=16, experts=8, top=2), "common": FeedForwardConfig("shared", ffn=16),
    })  # fmt: skip
    slots, batch = sum(s.budget for s in of.streams.values()), dense.fake_batch(2)
    router = 6 * slots * mixture.model.layers * mixture.model.width * 8
    np.testing.assert_array_equal(mixture.flops(batch), dense.flops(batch) + router)


def test_a_plan_counts_the_experts_on_each_device():
    task = tiny.task(ffn_absent=("trunk",), feed_forwards={"all": routed(experts=8)})
    config = Experiment(
        batch_size=8, model=task.model, streams=dict(task.spec.streams), layout=dict(task.spec.layout)
    )  # fmt: skip
    shapes = task.template.shapes["trunk"]["feed_forwards"]["all"]
    own = sum(4 * shapes[name].size for name in ("gate", "up", "down"))
    one, four = (state_bytes(task, config, Sharding(1, 1, 1, 8, expert=n))["parameters"] for n in (1, 4))
    assert one - four == own * 3 / 4
    assert Sharding(1, 2, 1, 8, expert=4).rows == 1
    chips = parse_topology("h100:8")
    costs = [estimate(task, config, Sharding(1, 1, 1, 8, expert=n), chips) for n in (1, 4)]
    kinds = [{c.kind for c in cost.program.collectives} for cost in costs]
    assert kinds == [set(), {"all-reduce", "all-gather", "reduce-scatter"}]


def test_the_report_shows_the_last_loads_of_each_stream():
    rows = [
        {"step": 1, **{f"text_all_load_{i}": 0.5 for i in range(2)}, "image_all_load_0": 1.0, "image_all_load_1": 0.0},
        {
            "step": 2,
            "text_all_load_0": 0.25,
            "text_all_load_1": 0.75,
            "image_all_load_0": None,
            "image_other_load_0": 1.0,
        },
    ]
    assert last_loads(rows, "all", ("text", "image", "sound")) == {"text": [0.25, 0.75], "image": [1.0, 0.0]}


REFUSED = {
    "top 6 is more than the 5 experts": lambda: routed(top=6),
    "none of|unknown|softmax": lambda: routed(score="relu"),
    "passes no feed-forward layer": lambda: tiny.task(tiny.SPECS["experts"], ffn_absent=("b",)),
    "let them own all": lambda: tiny.task(
        tiny.SPECS["experts"], feed_forwards={"all": routed()}, ffn_absent=("b",), untied=("qkv",)
    ),
    "images": lambda: tiny.task(tiny.SPECS["experts"], feed_forwards={"all": routed(streams=("images",))}),
    "model.ffn_absent": lambda: tiny.task(tiny.SPECS["experts"], ffn_absent=("c",)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message):
    with pytest.raises(UsageError, match=message):
        REFUSED[message]()
