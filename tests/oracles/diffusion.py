"""Diffusion transformers of diffusers."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from oracles import Oracle, run
from oracles.language import meta, text_inputs
from transfusion.model.inputs import Inputs
from transfusion.model.unified import UnifiedModel, model_template
from transfusion.sequence import SequenceSpec
from transfusion.sequence.patches import patchify, places, unpatchify


def tokens(latents: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """[B, C, h, w] -> patches [B, N, E] and places [B, N, 2]."""
    where = places([side // patch for side in latents.shape[2:]])
    return patchify(latents.transpose(0, 2, 3, 1), (patch, patch)), np.stack([where] * len(latents))


def latents(patches: jax.Array, grid: tuple[int, int], patch: int) -> np.ndarray:
    return np.asarray(unpatchify(patches, grid, patch)).transpose(0, 3, 1, 2)


def image_inputs(content, place, time, order=0, position=None, span=1, **more) -> Inputs:
    b, n = content.shape[:2]
    zeros = jnp.zeros((b, n), jnp.int32)
    position = zeros[..., None] if position is None else jnp.asarray(position, jnp.int32)
    known = meta((b, n), order=order + jnp.arange(n), span=span)
    return Inputs(
        jnp.asarray(content), jnp.asarray(time, jnp.float32).reshape(b, 1), position, zeros, jnp.asarray(place), known,
        **more,
    )  # fmt: skip


def resized(imported, grid: tuple[int, int]):
    """The imported model for another latent grid of its streams (the weights do not depend on it)."""
    experiment = imported.experiment
    streams = {}
    for name, stream in experiment.streams.items():
        if stream.grid != (0, 0):
            count = (grid[0] // stream.patch) * (grid[1] // stream.patch) + stream.content.lead
            stream = dataclasses.replace(stream, grid=grid, budget=count)
        streams[name] = stream
    spec = SequenceSpec(streams, experiment.layout, 0, 0, experiment.model.rope_axes)
    return dataclasses.replace(imported, template=model_template(experiment.model, spec))


def velocity(name: str, model: UnifiedModel, inputs: dict[str, Inputs]) -> jax.Array:
    encoded = model.encode(inputs)
    return model.head(name, encoded[name])


def dit(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()
    stream = imported.experiment.streams["image"]
    x, t, label = (oracle.inputs[name] for name in ("x", "t", "y"))
    imported = resized(imported, x.shape[2:])
    content, place = tokens(x, stream.patch)
    inputs = {"image": image_inputs(content, place, 1 - t / 1000, label=jnp.asarray(label, jnp.int32)[:, None])}

    def pieces(model: UnifiedModel, inputs):
        condition = model.conditions(inputs)["image"]
        embedded, _ = model.embed("image", inputs["image"], condition.vector)
        blank = dataclasses.replace(inputs["image"], content=0 * inputs["image"].content)
        bias = model.parts["image"].embed.bias[...]
        table = model.embed("image", blank, condition.vector)[0] - bias[None, None]
        return embedded, table[:1], condition.vector[0, :, 0]

    embedded, table, vector = run(imported, params, pieces, inputs)
    # The first layer alone: the trunk of one layer, with the first layer's weights.
    one = dataclasses.replace(imported.experiment.model, layers=1)
    template = model_template(one, SequenceSpec({"image": stream}, imported.experiment.layout, 0, 0, 1))
    first = params | {"trunk": jax.tree.map(lambda w: w[:1], params["trunk"])}
    condition = first["parts"]["image"]["condition"]
    image = first["parts"]["image"] | {"condition": jax.tree.map(lambda w: w[:1], condition)}
    first = first | {"parts": {"image": image}}
    block = jax.jit(lambda params, inputs: template.bind(params).encode(inputs))(first, inputs)
    out = run(imported, params, partial(velocity, "image"), inputs)
    return {
        "patch_pos": embedded, "pos_table": table, "temb": vector, "block0": block["image"].hidden,
        "out": latents(out, x.shape[2:], stream.patch),
    }  # fmt: skip


def sd3(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()
    patch = imported.experiment.streams["image"].patch
    x, t, context, pooled = (oracle.inputs[name] for name in "xtep")
    imported = resized(imported, x.shape[2:])
    content, place = tokens(x, patch)
    image = image_inputs(content, place, 1 - t / 1000, pooled=jnp.asarray(pooled)[:, None])
    b, n, _ = context.shape
    text = image_inputs(context, np.zeros((b, n, 2), int), np.ones(b), order=content.shape[1])
    inputs = {"image": image, "context": text}
    vector = run(imported, params, lambda model, inputs: model.conditions(inputs)["image"].vector[:, 0], inputs)
    out = run(imported, params, partial(velocity, "image"), inputs)
    return {"temb": vector, "out": -latents(out, x.shape[2:], patch)}


def omnigen(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()
    patch = imported.experiment.streams["image"].patch
    x, t, ids, condition, mask, position = (oracle.inputs[name] for name in ("x", "t", "ids", "im", "mask", "pos"))
    n = x.shape[2] // patch * (x.shape[3] // patch)
    prefix = ids.shape[1]
    # The condition image is where a token before the time token sees ahead.
    ahead = np.nonzero(np.triu(mask[0][:prefix, :prefix], 1).any(1))[0]
    where = np.arange(ahead[0], ahead[-1] + 2)
    words = np.setdiff1d(np.arange(prefix), where)
    content, place = tokens(x, patch)
    content = np.pad(content, ((0, 0), (1, 0), (0, 0)))
    place = np.pad(place, ((0, 0), (1, 0), (0, 0)), constant_values=-1)
    b = len(x)
    span = np.where(np.arange(n + 1) == 0, 0, 2)
    inputs = {
        "text": text_inputs(ids[:, words], position[:, words], order=words),
        "image": image_inputs(content, place, t, order=prefix, position=position[:, prefix:, None], span=span),
    }
    clean, where_clean = tokens(condition, patch)
    inputs["context"] = dataclasses.replace(
        image_inputs(clean, where_clean, np.ones(b), position=position[:, where, None], span=1),
        metadata=meta((b, len(where)), order=where, span=1),
    )
    # Two grids: the table's middle is cut out for each.
    streams = dict(imported.experiment.streams)
    for name, like in (("image", x), ("context", condition)):
        grid, extra = like.shape[2:], streams[name].content.lead
        budget = grid[0] * grid[1] // patch**2 + extra
        streams[name] = dataclasses.replace(streams[name], grid=tuple(grid), budget=budget)
    spec = SequenceSpec(streams, imported.experiment.layout, 0, 0, 1)
    imported = dataclasses.replace(imported, template=model_template(imported.experiment.model, spec))
    out = run(imported, params, partial(velocity, "image"), inputs)
    return {"out": latents(out[:, 1:], x.shape[2:], patch)}


def cosmos3(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()
    patch = imported.experiment.streams["image"].patch
    ids, z, t = (oracle.inputs[name] for name in ("ids", "z", "t"))
    frames = z[0].transpose(1, 0, 2, 3)  # [T, C, h, w]
    content, place = tokens(frames, patch)
    content, place = content.reshape(1, -1, content.shape[-1]), place.reshape(1, -1, 2)
    n = len(ids)

    def all_of(model: UnifiedModel, inputs):
        encoded = model.encode(inputs)
        text, image = encoded["text"], encoded["image"]
        return text.hidden[0], image.hidden[0], model.head("text", text)[0], model.head("image", image)[0]

    def outputs(position):
        position = position.T[None]
        inputs = {
            "text": text_inputs(ids[None], position[:, :n]),
            "image": image_inputs(content, place, 1 - t[:1] / 1000, order=n, position=position[:, n:]),
        }
        und, gen, logits, out = run(imported, params, all_of, inputs)
        out = latents(out.reshape(len(frames), -1, out.shape[-1]), frames.shape[2:], patch)
        return und, gen, logits, -out.transpose(1, 0, 2, 3)[None]

    und, gen, logits, out = outputs(oracle.inputs["pos"])
    _, _, shared_logits, shared = outputs(oracle.inputs["pos1"])
    return {
        "h_und": und, "h_gen": gen, "logits": logits, "velocity": out, "logits_sharedpos": shared_logits,
        "velocity_sharedpos": shared,
    }  # fmt: skip


CHECKS = {
    r"diffusers \S+ DiTTransformer2DModel": dit,
    r"diffusers \S+ SD3Transformer2DModel": sd3,
    r"diffusers \S+ OmniGenTransformer2DModel": omnigen,
    r"diffusers \S+ Cosmos3OmniTransformer": cosmos3,
}
