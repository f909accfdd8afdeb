"""BAGEL: the packed training forward, and drawing against cached prefixes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from oracles import Oracle, run
from oracles.language import meta
from transfusion.model.cache import KeyValues
from transfusion.model.inputs import Inputs
from transfusion.model.unified import UnifiedModel
from transfusion.objectives.paths import shift_time
from transfusion.sampling.guidance import Guidance
from transfusion.sequence.masks import see
from transfusion.sequence.patches import patchify


def published(config: dict) -> dict:
    """config.json as BAGEL publishes it, from the oracle's short one."""
    llm, vit = config["llm"], config["vit"]
    common = {"num_hidden_layers": "layers", "num_attention_heads": "heads", "intermediate_size": "inter"}
    return {
        "model_type": "bagel",
        "llm_config": {
            "vocab_size": llm["vocab"], "hidden_size": llm["hidden"], "num_key_value_heads": llm["kv"],
            "rope_theta": llm["rope_theta"], "qk_norm": llm["qk_norm"], "layer_module": llm["layer"],
            "rms_norm_eps": 1e-6,
        } | {theirs: llm[ours] for theirs, ours in common.items()},
        "vit_config": {"hidden_size": vit["hidden"], "patch_size": vit["patch"], "image_size": 8 * vit["patch"]}
        | {theirs: vit[ours] for theirs, ours in common.items()},
        "vae_config": {"z_channels": config["channels"]},
        "latent_patch_size": config["latent_patch"], "max_latent_size": config["max_latent"],
        "vit_max_num_patch_per_side": vit["pos_side"], "timestep_shift": config["timestep_shift"],
    }  # fmt: skip


def inputs_of(content, position, where, fields, time=None, place=None, item=None) -> Inputs:
    """One stream's tokens at the places `where` of a packed row."""
    n = len(where)
    known = meta((1, n), **{name: np.asarray(x)[where] for name, x in fields.items()})
    return Inputs(
        jnp.asarray(content)[None], None if time is None else jnp.asarray(time, jnp.float32)[None],
        jnp.asarray(np.asarray(position)[where], jnp.int32)[None, :, None],
        jnp.zeros((1, n), jnp.int32) if item is None else jnp.asarray(item, jnp.int32)[None],
        None if place is None else jnp.asarray(place, jnp.int32)[None], known,
    )  # fmt: skip


def places(flat: np.ndarray, side: int) -> np.ndarray:
    return np.stack([flat // side, flat % side], -1)


def training(oracle: Oracle) -> dict[str, np.ndarray]:
    x, config = oracle.inputs, dict(oracle.config)
    config["channels"] = x["noise"].shape[1] // config["latent_patch"] ** 2
    imported, params, _ = oracle.load(published(config))
    lengths, documents = x["split_lens"], x["sample_lens"]
    modes = [mode for mode, _, _ in config["splits"]]
    number = np.repeat(np.arange(len(lengths)) + 1, lengths)
    mode = np.repeat(modes, lengths)
    fields = {
        "document": np.repeat(np.arange(len(documents)) + 1, documents),
        "order": np.arange(len(number)),
        "span": np.where(mode == "causal", 0, number),
        "private": np.where(mode == "noise", number, 0),
    }
    row = meta((1, len(number)), **fields)
    np.testing.assert_array_equal(np.asarray(see(row, row))[0], x["mask"])
    u = np.asarray(x["ts"], np.float64)
    noisy = np.isfinite(u)
    # Their time is ours reversed: t = 1 is noise.
    noise_level = 1 - np.asarray(shift_time(1 - 1 / (1 + np.exp(-u)), config["timestep_shift"]))
    data = _latents(x, number[x["vae_idx"]], config["latent_patch"])
    s = noise_level[:, None]
    side = config["max_latent"]
    parts = {}
    for name, mask in (("noised", noisy), ("clean", ~noisy)):
        level = noise_level[mask]
        items, item = np.unique(number[x["vae_idx"]][mask], return_inverse=True)
        time = np.array([1 - level[item == i][0] for i in range(len(items))])
        content = np.where(noisy[:, None], (1 - s) * data + s * x["noise"], data)[mask].astype(np.float32)
        where = x["vae_idx"][mask]
        parts[name] = inputs_of(content, x["pos"], where, fields, time, places(x["lpos"][mask], side), item)
    parts["text"] = inputs_of(x["ids"].astype(np.int32), x["pos"], x["text_idx"], fields)
    vit = places(x["vpos"], config["vit"]["pos_side"])
    parts["semantic"] = inputs_of(x["vt"], x["pos"], x["vit_idx"], fields, np.ones(1), vit)

    def call(model: UnifiedModel, parts):
        encoded = model.encode(parts)
        hidden = {name: out.hidden[0] for name, out in encoded.items()}
        seen, _ = model.part("semantic").embed(parts["semantic"], None)
        return hidden, seen[0], model.head("text", encoded["text"])[0], model.head("noised", encoded["noised"])[0]

    hidden, seen, logits, velocity = run(imported, params, call, parts)
    whole = np.zeros((len(number), imported.experiment.model.width), np.float32)
    where = {
        "text": x["text_idx"],
        "semantic": x["vit_idx"],
        "noised": x["vae_idx"][noisy],
        "clean": x["vae_idx"][~noisy],
    }
    for name, index in where.items():
        whole[index] = hidden[name]
    target = data[noisy] - x["noise"][noisy]  # our direction; squares do not care
    log = jax.nn.log_softmax(logits)[np.searchsorted(x["text_idx"], x["ce_idx"])]
    return {
        "hidden": whole, "vit_connector": seen, "logits": logits, "velocity": -velocity,
        "mse": np.square(np.asarray(velocity) - target), "t_shifted": noise_level,
        "ce": -np.asarray(log)[np.arange(len(x["lab"])), x["lab"]],
    }  # fmt: skip


def _latents(x: dict[str, np.ndarray], split: np.ndarray, patch: int) -> np.ndarray:
    """The data [n, E] of every latent token; `split` is the number of its split. The file has 'lat0', 'lat2': the
    latents of the first and third split of latents. One without latents of its own is the clean copy of that before."""
    rows = []
    for i in range(len(np.unique(split))):
        if f"lat{i}" in x:
            rows.append(patchify(x[f"lat{i}"].transpose(1, 2, 0), (patch, patch)))
        else:
            rows.append(rows[-1])
    assert [len(r) for r in rows] == np.unique(split, return_counts=True)[1].tolist()
    return np.concatenate(rows)


def drawing(oracle: Oracle) -> dict[str, np.ndarray]:
    beside = oracle.weights.with_suffix(".json")
    config = json.loads(beside.read_text())["config"]
    noise, prompt = oracle.inputs["noise"], oracle.inputs["prompt_ids"]
    config["channels"] = noise.shape[1] // config["latent_patch"] ** 2
    imported, params, _ = dataclasses.replace(oracle, about=oracle.about | {"config": config}).load(published(config))
    facts = oracle.config
    rows, columns = facts["grid"]
    n, prefix = rows * columns, len(prompt)
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)

    def prefill(model: UnifiedModel, ids):
        fields = {"document": np.ones(prefix), "order": np.arange(prefix)}
        text = inputs_of(ids, np.arange(prefix), np.arange(prefix), fields)
        return model.read({"text": text})[1]

    def velocity(model: UnifiedModel, cache: KeyValues, index, x, t):
        """What the model says of x [N, E] after a prefix; `index`: the rotary index of the image."""
        order = prefix + np.arange(n + 2)
        fields = {"document": np.ones(n + 2), "order": order, "span": np.ones(n + 2), "private": np.ones(n + 2)}
        position = jnp.full(n + 2, index)
        edges = np.array([0, n + 1])
        parts = {
            "text": inputs_of(np.array([facts["soi"], facts["eoi"]], np.int32), np.zeros(n + 2), edges, fields),
            "noised": inputs_of(x, np.zeros(n + 2), np.arange(n) + 1, fields, jnp.asarray(t)[None], place),
        }
        parts = {
            name: dataclasses.replace(part, position=position[: part.position.shape[1], None][None])
            for name, part in parts.items()
        }
        encoded = model.encode(parts, cache)
        return model.head("noised", encoded["noised"])

    def draw(model: UnifiedModel, ids, noise, times, guidance: Guidance, guided: bool):
        cache = prefill(model, ids)
        empty = jax.tree.map(jnp.zeros_like, cache)  # document 0: nothing is seen
        x = noise
        for t, after in zip(times[:-1], times[1:], strict=True):
            v = velocity(model, cache, prefix, x, t)
            if guided:
                v = guidance.predict(t, v, lambda x=x, t=t: velocity(model, empty, 0, x, t))
            x = x + (after - t) * v[0]
        return x

    results = {}
    for name, case in zip(oracle.outputs, facts["cases"], strict=True):
        words = case.split()
        shift = float(next(w for w in words if w.startswith("shift"))[5:])
        scale = next((float(w[3:]) for w in words if w.startswith("cfg")), 1.0)
        renorm = next((r for r in ("text_channel", "channel", "global") if r in words), "none")
        low, high = (0.4, 1.0) if "interval" in words else (0.0, 1.0)
        least = float(words[words.index("min") + 1]) if "min" in words else 0.0
        s = np.linspace(1, 0, facts["num_timesteps"])
        times = 1 - shift * s / (1 + (shift - 1) * s)
        guidance = Guidance(scale, 1 - high, 1 - low, least=least, renorm=renorm)
        out = run(
            imported, params,
            lambda model, ids, noise, times, g=guidance, on=scale > 1: draw(model, ids, noise, times, g, on),
            jnp.asarray(prompt, jnp.int32), jnp.asarray(noise), jnp.asarray(times, jnp.float32),
        )  # fmt: skip
        results[name] = out
    return results


def bagel(oracle: Oracle) -> dict[str, np.ndarray]:
    return drawing(oracle) if "prompt_ids" in oracle.inputs else training(oracle)


CHECKS = {r"ByteDance-Seed/Bagel": bagel}
