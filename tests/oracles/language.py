"""Text models of transformers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from oracles import Oracle, run
from transfusion.model.inputs import Inputs
from transfusion.model.unified import UnifiedModel
from transfusion.sequence.masks import Metadata


def meta(shape: tuple[int, ...], **fields) -> Metadata:
    """One document in reading order, all causal, but for the given fields."""
    zeros = jnp.zeros(shape, jnp.int32)
    order = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
    columns = {"document": zeros + 1, "order": order, "span": zeros, "private": zeros}
    columns |= {"stream": zeros} | {name: jnp.broadcast_to(jnp.asarray(x), shape) for name, x in fields.items()}
    return Metadata(**columns)


def text_inputs(ids, position, **fields) -> Inputs:
    ids, position = jnp.asarray(ids, jnp.int32), jnp.asarray(position, jnp.int32)
    position = position if position.ndim == 3 else position[..., None]
    return Inputs(ids, None, position, jnp.zeros_like(ids), None, meta(ids.shape, **fields))


def spans_of(mask: np.ndarray) -> np.ndarray:
    """The bidirectional blocks [n] of a causal mask with blocks [n, n]: 0 where causal."""
    n = len(mask)
    ahead = np.triu(mask, 1)
    starts = {i: int(np.max(np.nonzero(ahead[i])[0])) for i in range(n) if ahead[i].any()}
    span, number = np.zeros(n, int), 0
    for first, last in starts.items():
        if span[first] == 0:
            number += 1
            span[first : last + 1] = number
    assert np.array_equal(mask, np.tril(np.ones((n, n), bool)) | ((span[:, None] == span) & (span > 0)))
    return span


def logits(model: UnifiedModel, inputs: Inputs) -> tuple[jax.Array, ...]:
    encoded = model.encode({"text": inputs})
    return model.head("text", encoded["text"]), encoded["text"].hidden, model.embed("text", inputs)[0]


def cached(model: UnifiedModel, ids, split: int) -> jax.Array:
    """Logits of a prefill of `split` tokens, then of the others one by one against the cache."""
    b, n = ids.shape
    position = jnp.broadcast_to(jnp.arange(n), (b, n))
    encoded, cache = model.read({"text": text_inputs(ids[:, :split], position[:, :split])})
    out = [model.head("text", encoded["text"])]
    for i in range(split, n):
        one = text_inputs(ids[:, i : i + 1], position[:, i : i + 1], order=i)
        encoded, new = model.read({"text": one}, cache)
        out.append(model.head("text", encoded["text"]))
        k, v = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 2), (cache.k, cache.v), (new.k, new.v))
        joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), cache.metadata, new.metadata)
        cache = type(cache)(k, v, joined)
    return jnp.concatenate(out, 1)


def causal_lm(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()
    ids, b, n = oracle.inputs["ids"], *oracle.inputs["ids"].shape
    line = np.broadcast_to(np.arange(n), (b, n))
    call = partial(run, imported, params)
    plain, last, embedded = call(logits, text_inputs(ids, line))
    moved, _, _ = call(logits, text_inputs(ids, oracle.inputs["pos"]))
    span = np.broadcast_to(spans_of(oracle.inputs["mask"]), (b, n))
    block, _, _ = call(logits, text_inputs(ids, oracle.inputs["pos_img"], span=span))
    return {
        "logits": plain, "h_embed": embedded, "h_last": last, "logits_pos": moved, "logits_blockmask": block,
        "logits_cached": call(partial(cached, split=6), jnp.asarray(ids, jnp.int32)),
    }  # fmt: skip


CHECKS = {r"transformers \S+ (Llama|Qwen2|Qwen3|Qwen3Moe)ForCausalLM": causal_lm}
