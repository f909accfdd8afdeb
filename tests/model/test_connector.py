"""Learned queries, the connector behind a language model, and cross-attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close, trunk_operations

from transfusion.errors import UsageError
from transfusion.model.config import Stage, TransformerConfig
from transfusion.model.parameters import Template
from transfusion.model.transformer import Trunk, TrunkInputs
from transfusion.sequence import Stream
from transfusion.sequence.masks import Metadata
from transfusion.sequence.rows import assemble, expand

QUERIES = 3


def connected(boundary="outside", **queries):
    """A task whose images follow queries; the queries' outputs are read after the stage `head_after`."""
    fields = dict(embed="queries", source="none", grid=(QUERIES, 1), budget=4 * QUERIES)
    streams = {
        "text": tiny.text_stream(head_after="trunk"),
        "image": tiny.image_stream(),
        "queries": Stream(head="none", objective="none", attention="block", **fields | queries),
    }
    read = tiny.image_run("queries", closer=-1, loss=False, boundary=boundary)
    runs = (read, tiny.image_run(opener=-1, private=True))
    spec = tiny.spec(streams, {"image": runs, "image/context": ()})
    connector = tiny.model(layers=1, streams=("queries",))
    diffuse = tiny.model(layers=1, streams=("image", "queries"))
    stages = {"connector": Stage(connector), "diffuse": Stage(diffuse, "mlp")}
    return tiny.task(spec, layers=1, streams=("text", "queries"), causal=("queries",), stages=stages)


def numbers(shapes, seed=0):
    """Random parameters, none of them zero; quicker than `init`, which compiles."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) / 3, jnp.float32), shapes)


def outputs(task):
    """The streams' outputs, a compiled function of parameters and batch."""

    @jax.jit
    def run(params, batch):
        draws = task.draw(batch, jax.random.key(0))
        inputs = {name: task.inputs(name, batch, draws) for name in task.spec.streams}
        encoded = task.template.bind(params).encode(inputs)
        return {name: part.hidden[0] for name, part in encoded.items()}

    return run


def changed(a, b):
    return np.abs(a - b).max(-1) > 1e-6


def test_a_span_is_not_read_causally_in_part():
    with pytest.raises(UsageError, match="model.causal names 'queries', whose openers and closers lie inside"):
        connected(boundary="inside")


def test_every_image_brings_the_same_queries_whatever_it_holds():
    task = connected()
    rng = np.random.default_rng(0)
    document = (tiny.words(1, 2), tiny.picture(rng), tiny.words(3), tiny.picture(rng))
    part = expand(document, task.spec)
    assert part.cost == {"text": 9, "image": 8, "queries": 2 * QUERIES}
    # BOI, queries and image stand one behind the other, and an image that is only read yields nothing.
    assert part.pieces["queries"]["order"].tolist() == [4, 5, 6, 14, 15, 16]
    assert part.pieces["image"]["order"][:4].tolist() == [7, 8, 9, 10]
    assert not task.spec.reads("image") and task.spec.reads("text")
    batch = assemble([[part]], task.spec)
    params = numbers(task.template.shapes)
    inputs = task.inputs("queries", batch, {"queries": {}})
    tokens = task.template.bind(params).embed("queries", inputs)[0][0]
    table = params["parts"]["queries"]["embed"]["table"]
    assert table.shape == (QUERIES, 32)
    np.testing.assert_array_equal(tokens[: 2 * QUERIES], jnp.concatenate([table, table]))


def test_queries_are_causal_in_the_language_model_and_see_each_other_in_the_connector():
    picture, seen = tiny.picture(np.random.default_rng(0)), {}
    for after in ("trunk", "connector"):
        task = connected(head_after=after)
        batch = assemble([[expand((tiny.words(1, 2), picture), task.spec)]], task.spec)
        params, run = numbers(task.template.shapes), outputs(task)
        before = run(params, batch)
        embed = params["parts"]["queries"]["embed"]
        embed["table"] = embed["table"].at[1].add(1.0)
        later = run(params, batch)
        seen[after] = changed(before["queries"], later["queries"])[:QUERIES].tolist()
        np.testing.assert_array_equal(before["text"][:4], later["text"][:4])
        assert changed(before["image"], later["image"])[:4].all()
    assert seen == {"trunk": [False, True, True], "connector": [True, True, True]}


def test_the_image_sees_text_through_its_queries_alone():
    task, picture = connected(), tiny.picture(np.random.default_rng(0))
    batches = [assemble([[expand((tiny.words(i, 2), picture), task.spec)]], task.spec) for i in (1, 5)]
    params, run = numbers(task.template.shapes), outputs(task)
    one, other = (run(params, batch)["image"] for batch in batches)
    assert changed(one, other)[:4].all()
    # Without the way from the connector to the trunk that diffuses, nothing of the text is left.
    params["bridges"] = jax.tree.map(jnp.zeros_like, params["bridges"])
    one, other = (run(params, batch)["image"] for batch in batches)
    np.testing.assert_array_equal(one, other)


# --- cross-attention --------------------------------------------------------------------------------------------------


def norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def attend(q, k, v):
    """q [N, H, K], k and v [S, G, K]: every query sees every key."""
    share = q.shape[1] // k.shape[1]
    out = np.zeros_like(q)
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h // share].T / np.sqrt(q.shape[2])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, h // share]
    return out


def plain(params, config, image, context):
    """An image's tokens [N, D] that see each other, and by cross-attention the context [S, D]."""
    own, cross = params["blocks"]["image"], params["cross"]

    def heads(x, weights, name, i):
        return np.einsum("nd,dhk->nhk", x, weights[name][i]) + weights[f"{name}_bias"][i]

    for i in range(config.layers):
        y = norm(image, own["attention_norm"][i], config.norm_epsilon)
        out = attend(*(heads(y, own, name, i) for name in "qkv"))
        image = image + np.einsum("nhk,hkd->nd", out, own["o"][i])
        y = norm(image, cross["norm"][i], config.norm_epsilon)
        out = attend(heads(y, cross, "q", i), heads(context, cross, "k", i), heads(context, cross, "v", i))
        image = image + np.einsum("nhk,hkd->nd", out, cross["o"][i])
        y = norm(image, own["ffn_norm"][i], config.norm_epsilon)
        gate = y @ own["gate"][i]
        image = image + (gate / (1 + np.exp(-gate)) * (y @ own["up"][i])) @ own["down"][i]
    return image


N, S = 4, 3
MAY, CROSS = np.array([[True, False], [True, False]]), np.array([[False, True], [False, True]])


def metadata(documents, first, span, stream):
    order, document = np.arange(first, first + len(documents))[None], np.array([documents])
    fields = (document, order, np.full_like(order, span), np.zeros_like(order), np.full_like(order, stream))
    return Metadata(*(jnp.asarray(field, jnp.int32) for field in fields))


@pytest.mark.parametrize("changes", [{}, {"scan": False, "attention": "blockwise"}])
def test_cross_attention_equals_the_plain_one_and_its_context_is_kept(changes):
    config = TransformerConfig(
        width=16, layers=2, heads=4, kv_heads=2, ffn_multiple=16, biases=("qkv",), rope_theta=0.0, final_norm=False,
        streams=("image", "words"), cross=("words",), **changes,
    )  # fmt: skip
    template = Template(lambda rngs: Trunk(config, {"image": "image", "words": "elsewhere"}, rngs))
    assert set(template.shapes["blocks"]) == {"image"}  # the context is not changed here
    assert not jax.jit(lambda key: template.init(key)["cross"]["o"])(jax.random.key(0)).any()
    params = numbers(template.shapes)
    rng = np.random.default_rng(0)
    image, context = (rng.standard_normal((1, n, 16)).astype(np.float32) for n in (N, S + 1))
    # The last word belongs to another document.
    meta = {"image": metadata([1] * N, S, 1, 0), "words": metadata([1] * S + [2], 0, 0, 1)}
    position = {"image": jnp.zeros((1, N, 1), jnp.int32), "words": jnp.zeros((1, S + 1, 1), jnp.int32)}

    def part(params, x, names, cache=None):
        tables = ({name: table[name] for name in names} for table in (x, position, meta))
        return template.bind(params).read(TrunkInputs(*tables, may=MAY, may_cross=CROSS), cache)

    @jax.jit
    def run(params, x):
        same, cache = part(params, x, ["words"])
        return part(params, x, ["image", "words"]), part(params, x, ["image"], cache)[0] | same, cache

    (out, kept), parts, cache = run(params, {"image": jnp.asarray(image), "words": jnp.asarray(context)})
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    operations = 2 * trunk_operations(config, N + S + 1)  # two attentions in each layer
    assert_close(out["image"][0], plain(wide, config, image[0], context[0, :S]), operations)
    np.testing.assert_array_equal(out["words"], context)
    assert_close(parts["image"], out["image"], operations)
    assert_close(cache.k["trunk"][0], kept.k["trunk"][0][:, :, N:], operations)
    np.testing.assert_array_equal(cache.metadata.order, kept.metadata.order[:, N:])


def test_trunks_that_cannot_work_are_refused():
    spec = connected().spec
    for changes, message in (
        ({"cross": ("querys",)}, r"no stream 'querys' \(did you mean 'queries'"),
        ({"cross": tuple(spec.streams)}, "changes no stream"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny.task(spec, **changes)
    with pytest.raises(UsageError, match="embed 'queries' needs source 'none'"):
        connected(source="value", channels=1)
