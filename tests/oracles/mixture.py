"""The published layers of Mixture-of-Transformers: weights per modality, norms behind the sublayers."""

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from oracles import Oracle
from transfusion.model.block import Block
from transfusion.model.config import TransformerConfig


def bound(config: TransformerConfig, arrays: dict[str, np.ndarray]) -> Block:
    """A block of one layer with the given arrays; the others stay as they are initialised."""
    block = Block(config, nnx.Rngs(0))
    graph, state = nnx.split(block)
    pure = nnx.to_pure_dict(state)
    assert arrays.keys() <= pure.keys()
    nnx.replace_by_pure_dict(
        state, {n: arrays[n].reshape(x.shape[1:]) if n in arrays else x[0] for n, x in pure.items()}
    )
    return nnx.merge(graph, state)


def by_modality(oracle: Oracle, config: TransformerConfig, names: dict[str, str], call) -> list[np.ndarray]:
    """`call(block, rows)` of each modality's rows of the inputs with its own weights, put back in order."""
    weights = load_file(oracle.weights)
    first = oracle.inputs["mask0"]
    parts = []
    for modality, mask in enumerate((first, ~first)):
        arrays = {ours: weights[theirs.format(modality)] for ours, theirs in names.items()}
        arrays = {ours: w.T if w.ndim == 2 else w for ours, w in arrays.items()}
        rows = {name: x[mask][None] for name, x in oracle.inputs.items() if name != "mask0"}
        parts.append((mask, call(bound(config, arrays), rows)))
    result = []
    for pieces in zip(*(out for _, out in parts), strict=True):
        whole = np.zeros((len(first), *np.shape(pieces[0])[2:]), np.float32)
        for (mask, _), piece in zip(parts, pieces, strict=True):
            whole[mask] = piece[0]
        result.append(whole.reshape(len(first), -1))
    return result


def feed_forward(oracle: Oracle) -> dict[str, np.ndarray]:
    config = TransformerConfig(
        width=oracle.config["dim"], layers=1, heads=1, ffn=oracle.config["actual_hidden"], norm_place="post"
    )
    names = {"gate": "local_experts.{}.w1.weight", "up": "local_experts.{}.w3.weight"}
    names |= {"down": "local_experts.{}.w2.weight", "ffn_norm": "local_experts_ffn_norm.{}.weight"}

    def call(block: Block, rows: dict[str, jax.Array]):
        return [block.ffn_norm_rule(block.feed_forward(rows["x"]), block.ffn_norm[...], None)]

    return {"y": by_modality(oracle, config, names, call)[0]}


def projections(oracle: Oracle) -> dict[str, np.ndarray]:
    heads, size = oracle.config["heads"], oracle.config["head_dim"]
    config = TransformerConfig(
        width=oracle.config["dim"], layers=1, heads=heads, head_size=size, norm_place="post",
        qk_norm="rms" if oracle.config["qk_norm"] else "none",
    )  # fmt: skip
    names = {name: f"local_experts_w{name}.{{}}.weight" for name in "qkvo"}
    names |= {"attention_norm": "local_experts_attention_norm.{}.weight"}
    if oracle.config["qk_norm"]:
        names |= {f"{name}_norm": f"local_experts_{name}_normalization.{{}}.weight" for name in "qk"}

    def call(block: Block, rows: dict[str, jax.Array]):
        q, k, v = block.queries_keys_values(rows["x"], None)
        context = rows["ctx"].reshape(*rows["ctx"].shape[:2], heads, size)
        return [q, k, v, block.norm(block.project(context), block.attention_norm[...], None)]

    return dict(zip(("q", "k", "v", "out"), by_modality(oracle, config, names, call), strict=True))


def layers(oracle: Oracle) -> dict[str, np.ndarray]:
    return projections(oracle) if "ctx" in oracle.inputs else feed_forward(oracle)


CHECKS = {r"facebookresearch/Mixture-of-Transformers": layers}
