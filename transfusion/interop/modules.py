"""What several families of released checkpoints have in common: names of streams, and leaves of whole modules.

A function here gives the leaves of one of our modules (a linear layer, a perceptron, the blocks of an expert) under the
names that a family has for it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import Convert, matrix, matrix_from, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, given
from transfusion.interop.leaves import Leaf
from transfusion.model.config import TransformerConfig
from transfusion.model.unified import model_template
from transfusion.sequence import TEXT, SequenceSpec

# Streams besides text.
IMAGE, SEMANTIC, CONTEXT = "image", "semantic", "context"
# The two experts of a mixture.
UNDERSTANDING, GENERATION = "understanding", "generation"


def claims_of(name: str) -> Callable[[Mapping[str, Any], Collection[str]], bool]:
    """The `claims` of a family whose config.json names this class."""
    return lambda config, keys: name in class_names(config)


def imported(experiment: Experiment, leaves: list[Leaf], ignore: tuple[str, ...] = ()) -> Imported:
    """A model of ours whose documents need neither a begin nor an end of text."""
    spec = SequenceSpec(experiment.streams, experiment.layout, 0, 0, experiment.model.rope_axes)
    return Imported(model_template(experiment.model, spec), leaves, experiment, ignore)


def dense_leaves(at: tuple[str, ...], ours: str, theirs: str, kernel: Convert | None = None) -> list[Leaf]:
    """A linear layer with a bias: the arrays OURS and OURS_bias, or 'kernel' and 'bias' if `ours` is ''."""
    names = (f"{ours}", f"{ours}_bias") if ours else ("kernel", "bias")
    return [
        Leaf((*at, names[0]), f"{theirs}.weight", kernel or matrix()),
        Leaf((*at, names[1]), f"{theirs}.bias", same()),
    ]


def perceptron_leaves(at: tuple[str, ...], hidden: str, out: str) -> list[Leaf]:
    """A `Perceptron` at the path `at`, made of two linear layers."""
    return dense_leaves(at, "hidden", hidden) + dense_leaves(at, "out", out)


def embedder_leaves(at: tuple[str, ...], theirs: str) -> list[Leaf]:
    """A `Perceptron` at the path `at`, under diffusers' names for the layers of a time embedding."""
    return perceptron_leaves(at, f"{theirs}.linear_1", f"{theirs}.linear_2")


def latent_side(config: Mapping[str, Any], default: int = 32) -> int:
    """The side of a square model's latents, rounded down to whole patches."""
    patch, size = given(config, "patch_size", default=2), given(config, "sample_size", default=default)
    if size < patch:
        raise UsageError(f"config.json: sample_size {size} holds no patch of patch_size {patch}")
    return size // patch * patch


def token_leaves(table: str, head: str, tied: bool) -> list[Leaf]:
    """The table and the head of the text stream; one that is `tied` to the table has no array of its own."""
    leaves = [Leaf(("parts", TEXT, "embed", "table"), table, same())]
    return leaves + ([] if tied else [Leaf(("parts", TEXT, "head", "kernel"), head, matrix())])


def layer_keys(prefix: str, layers: int) -> Callable[[str], tuple[str, ...]]:
    """A function from an array's name to its keys in all layers: 'q.weight' -> ('PREFIX.0.q.weight', ...)."""
    return lambda name: tuple(f"{prefix}.{i}.{name}" for i in range(layers))


LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def block_leaves(
    model: TransformerConfig,
    at: tuple[str, ...],
    keys: Callable[[str], tuple[str, ...]],
    names: Mapping[str, str] = LAYER_NAMES,
) -> list[Leaf]:
    """The blocks of one expert at the path `at`. `names` are their names, without '.weight' and '.bias'."""
    h, g, k = model.heads, model.groups, model.size
    heads = {"q": (h, k), "k": (g, k), "v": (g, k)}
    bias = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "out", "gate": "ffn", "up": "ffn", "down": "ffn"}
    leaves = []

    def add(ours: str, theirs: str, convert: Convert) -> None:
        leaves.append(Leaf((*at, ours), keys(theirs), convert))

    for ours, theirs in names.items():
        if (ours in ("q_norm", "k_norm") and model.qk_norm == "none") or (
            ours == "gate" and model.ffn_kind != "swiglu"
        ):
            continue
        if ours.endswith("norm"):
            if model.norm == "plain" and ours not in ("q_norm", "k_norm"):
                continue
            add(ours, f"{theirs}.weight", same())
            if (model.qk_norm if ours in ("q_norm", "k_norm") else model.norm) == "layer":
                add(f"{ours}_bias", f"{theirs}.bias", same())
            continue
        add(ours, f"{theirs}.weight", matrix_from(h, k) if ours == "o" else matrix(*heads.get(ours, ())))
        if bias[ours] in model.biases:
            add(f"{ours}_bias", f"{theirs}.bias", same(*heads.get(ours, ())))
    return leaves
