"""Models of Cosmos 3's type, with and without norms of the text's queries and keys, against plain NumPy."""

import numpy as np
import pytest
import released
from oracles import assert_same_checkpoint, run
from oracles.diffusion import image_inputs
from oracles.language import text_inputs

from transfusion.errors import UsageError
from transfusion.interop.export import export_checkpoint
from transfusion.interop.files import Checkpoint
from transfusion.interop.importing import import_checkpoint, load_params
from transfusion.interop.known import FAMILIES, find_family
from transfusion.model.config import ReleasedTrunk, TransformerConfig
from transfusion.workdir.config_file import read_experiment

N, M, WIDTH, HEADS, GROUPS, SIZE, LAYERS, THETA = 5, 4, 16, 4, 2, 6, 2, 100.0
CONFIG = {
    "_class_name": "Cosmos3OmniTransformer", "head_dim": SIZE, "hidden_size": WIDTH, "intermediate_size": 12,
    "latent_channel": 2, "latent_patch_size": 2, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "num_key_value_heads": GROUPS, "patch_latent_dim": 8, "rms_norm_eps": 1e-6, "rope_theta": THETA, "vocab_size": 11,
    "rope_axes_dim": [1, 1, 1], "rope_scaling": None, "action_gen": False, "action_dim": None, "sound_gen": False,
    "hidden_act": "silu", "use_und_k_norm_for_gen": False, "timestep_scale": 0.001,
}  # fmt: skip


def norm(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def heads(w, x, names, layer, position):
    """q [N, H, K] and k, v [N, G, K], normed where the released weights have norms, and rotated."""
    at, rotated = f"layers.{layer}.self_attn.", []
    angle = position[:, None] * THETA ** (-np.arange(SIZE // 2) / (SIZE // 2))
    cos, sin = (np.tile(f(angle), 2)[:, None] for f in (np.cos, np.sin))
    for name, of_norm in zip(names[:2], names[3:], strict=True):
        y = (x @ w[f"{at}{name}.weight"].T).reshape(len(x), -1, SIZE)
        y = norm(y, w[f"{at}{of_norm}.weight"]) if f"{at}{of_norm}.weight" in w else y
        a, b = np.split(y, 2, -1)
        rotated.append(y * cos + np.concatenate([-b, a], -1) * sin)
    return (*rotated, (x @ w[f"{at}{names[2]}.weight"].T).reshape(len(x), -1, SIZE))


def reference(w, words, frames, position):
    """Logits and what the last layer gives for the noised frames, float64, from the embedded inputs."""
    w = {key: value.astype(np.float64) for key, value in w.items()}
    xs = [words.astype(np.float64), frames.astype(np.float64)]
    names = [
        ("to_q", "to_k", "to_v", "norm_q", "norm_k"),
        ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"),
    ]
    sees = np.concatenate([np.tril(np.ones((N, N + M))), np.ones((M, N + M))]).astype(bool)
    for layer in range(LAYERS):
        ends = [f"layers.{layer}.", ("", "_moe_gen"), ("to_out", "to_add_out")]
        hs = [norm(x, w[f"{ends[0]}input_layernorm{end}.weight"]) for x, end in zip(xs, ends[1], strict=True)]
        parts = [heads(w, h, n, layer, p) for h, n, p in zip(hs, names, (position[:N], position[N:]), strict=True)]
        q, k, v = (np.concatenate(both) for both in zip(*parts, strict=True))
        k, v = (np.repeat(y, HEADS // GROUPS, 1) for y in (k, v))
        scores = np.where(sees, np.einsum("qhk,lhk->hql", q, k) / np.sqrt(SIZE), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hql,lhk->qhk", weights / weights.sum(-1, keepdims=True), v).reshape(N + M, -1)
        for i, (end, rows) in enumerate(zip(ends[1], (slice(0, N), slice(N, None)), strict=True)):
            xs[i] = xs[i] + out[rows] @ w[f"{ends[0]}self_attn.{ends[2][i]}.weight"].T
            h = norm(xs[i], w[f"{ends[0]}post_attention_layernorm{end}.weight"])
            gate, up, down = (w[f"{ends[0]}mlp{end}.{name}_proj.weight"].T for name in ("gate", "up", "down"))
            xs[i] = xs[i] + (h @ gate / (1 + np.exp(-(h @ gate))) * (h @ up)) @ down
    return norm(xs[0], w["norm.weight"]) @ w["lm_head.weight"].T, norm(xs[1], w["norm_moe_gen.weight"])


@pytest.mark.parametrize("normed", [True, False])
def test_text_with_and_without_norms_of_queries_and_keys(tmp_path, normed):
    config = CONFIG | {"qk_norm_for_text": normed}
    weights = released.weights("cosmos3", config)
    assert ("layers.0.self_attn.norm_q.weight" in weights) == normed
    assert "layers.1.self_attn.norm_added_k.weight" in weights
    folder = released.write(tmp_path / "in", config, weights)
    import_checkpoint(folder, tmp_path / "work", text_as_bytes=True)
    export_checkpoint(tmp_path / "work", tmp_path / "back")
    assert_same_checkpoint(folder, tmp_path / "back")
    absent = read_experiment(tmp_path / "work").model.released.qk_norm_absent
    assert absent == (() if normed else ("understanding",))
    _, imported = find_family(Checkpoint(folder))

    rng, position = np.random.default_rng(1), np.arange(N + M)
    ids, content = rng.integers(0, 11, (1, N)), rng.standard_normal((1, M, 8)).astype(np.float32)
    place = np.stack(np.divmod(np.arange(M), 2), -1)[None]
    axes = np.broadcast_to(position[:, None], (N + M, 3))[None]
    inputs = {
        "text": text_inputs(ids, axes[:, :N]),
        "image": image_inputs(content, place, np.full(1, 0.3), order=N, position=axes[:, N:]),
    }

    def call(model, inputs):
        encoded = model.encode(inputs)
        image = model.embed("image", inputs["image"])[0]
        return model.head("text", encoded["text"])[0], encoded["image"].hidden[0], image[0]

    logits, hidden, embedded = run(imported, load_params(tmp_path / "work", imported), call, inputs)
    want = reference(weights, weights["embed_tokens.weight"][ids[0]], np.asarray(embedded), position)
    for ours, theirs in zip((logits, hidden), want, strict=True):
        # float32 against float64 over two layers, relative to the norm of the whole array
        assert np.linalg.norm(np.asarray(ours) - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_what_cannot_be_computed_is_refused():
    for change, message in {
        "use_und_k_norm_for_gen": (True, "use_und_k_norm_for_gen is True, and only False is understood"),
        "rope_axes_dim": ([1, 1], r"rotary axes \[1, 1\] must be three that sum to 3"),
        "qk_norm_for_text": ("x", "qk_norm_for_text must be of type bool, not 'x'"),
    }.items():
        with pytest.raises(UsageError, match=message[1]):
            FAMILIES["cosmos3"].build(CONFIG | {change: message[0]}, [])


def test_experts_without_norms_own_their_weights():
    with pytest.raises(UsageError, match="qk_norm_absent: the experts must own all"):
        TransformerConfig(qk_norm="rms", released=ReleasedTrunk(qk_norm_absent=("a",)), untied=("qkv",))
