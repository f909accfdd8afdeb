r"""Writes oracles: tiny models of transformers and diffusers with random weights, and what they compute.

In an environment of its own (the library and its tests never import torch):

  pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 accelerate safetensors
  python tests/data/make_oracles.py FOLDER --seed 1

Then `TRANSFUSION_ORACLES=FOLDER pytest tests/test_oracles.py`. Each variant of `oracle_variants.py` gives
NAME.safetensors (weights under their original names), NAME.npz (inputs `in.*`, outputs `out.*`) and NAME.json (source,
config, tolerances). Every parameter is random, those too that start as zero, so that nothing is right by accident. The
absolute tolerance of an output is 20 times its difference to the same model in float64, and at least 2e-5.
"""

import argparse
import copy
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator
from oracle_codes import CODE_CALLS, vocabulary
from oracle_variants import BASE, VARIANTS
from safetensors.torch import save_file
from torch import nn

Arrays = dict[str, torch.Tensor]


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Scales of norms 1 + 0.2 n, biases 0.1 n, tables n / 2, matrices of unit gain."""

    def noise(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                value = 0.1 * noise(p.shape)
            elif p.ndim == 1:
                value = 1 + 0.2 * noise(p.shape)
            elif id(p) in tables or name.endswith("probe"):
                value = 0.5 * noise(p.shape)
            elif ".experts." in name:  # the matrices of all experts are one array
                value = noise(p.shape) / np.sqrt(p.shape[-1])
            else:
                value = noise(p.shape) / np.sqrt(p[0].numel())
            p.copy_(value)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.1 * noise(b.shape))
            elif name.endswith("running_var"):
                b.copy_(1 + 0.2 * noise(b.shape).abs())


class Inputs:
    """Random numbers, the same for each seed and variant."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def ids(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(1, high, shape, generator=self.generator)


# --- Per class: inputs, and outputs of a model at these inputs --------------------------------------------------------


def language_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    n, first, last = 11, 3, 8
    line = torch.arange(n)
    image = (line >= first) & (line < last)
    shared = torch.where(line < first, line, torch.where(image, first, line - (last - first) + 1))
    return {
        "ids": random.ids(config.vocab_size, 2, n),
        "pos": torch.stack([line, line + 5]),
        "mask": (line[:, None] >= line) | (image[:, None] & image),
        "pos_img": torch.stack([shared, shared]),
    }


def language(model: nn.Module, x: Arrays) -> Arrays:
    out = model(x["ids"], output_hidden_states=True)
    dtype = out.logits.dtype
    hidden = torch.zeros(x["mask"].shape, dtype=dtype).masked_fill(~x["mask"], torch.finfo(dtype).min)
    mask = hidden[None, None].expand(2, -1, -1, -1)
    cached = model(x["ids"][:, :6], use_cache=True)
    parts, cache = [cached.logits], cached.past_key_values
    for i in range(6, x["ids"].shape[1]):
        step = model(x["ids"][:, i : i + 1], past_key_values=cache, use_cache=True)
        parts, cache = [*parts, step.logits], step.past_key_values
    return {
        "logits": out.logits, "h_embed": out.hidden_states[0], "h_last": out.hidden_states[-1],
        "logits_pos": model(x["ids"], position_ids=x["pos"]).logits,
        "logits_blockmask": model(x["ids"], attention_mask=mask, position_ids=x["pos_img"]).logits,
        "logits_cached": torch.cat(parts, 1),
    }  # fmt: skip


def siglip_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    h, w = (n * config.patch_size for n in sizes["grid"])
    channels, side = config.num_channels, config.image_size
    return {"px": random.normal(2, channels, side, side), "px2": random.normal(1, channels, h, w)}


def siglip(model: nn.Module, x: Arrays) -> Arrays:
    out = model(x["px"], output_hidden_states=True)
    other = model(x["px2"], interpolate_pos_encoding=True)
    found = {
        "last": out.last_hidden_state, "pool": out.pooler_output, "penultimate": out.hidden_states[-2],
        "last_interp": other.last_hidden_state,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def autoencoder_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    h, w = sizes["size"]
    z = (2, config.latent_channels, *(n >> (len(config.block_out_channels) - 1) for n in (h, w)))
    return {"px": random.normal(2, config.in_channels, h, w), "z": random.normal(*z), "eps": random.normal(*z)}


def autoencoder(model: nn.Module, x: Arrays) -> Arrays:
    posterior = model.encode(x["px"]).latent_dist
    return {
        "mean": posterior.mean, "logvar": posterior.logvar, "sample": posterior.mean + posterior.std * x["eps"],
        "kl": posterior.kl(), "nll": posterior.nll(x["eps"]), "mode_decode": model.decode(posterior.mode()).sample,
        "decode": model.decode(x["z"]).sample,
    }  # fmt: skip


def dit_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    side = config.sample_size
    return {
        "x": random.normal(2, config.in_channels, side, side), "t": torch.tensor([3.0, 700.0]),
        "y": torch.tensor([1, config.num_embeds_ada_norm]),  # the last row of the table is no class
    }  # fmt: skip


def dit(model: nn.Module, x: Arrays) -> Arrays:
    kept: dict[str, torch.Tensor] = {}
    first = model.transformer_blocks[0]
    hook = first.register_forward_hook(lambda module, given, out: kept.update(block0=out))
    out = model(x["x"], timestep=x["t"], class_labels=x["y"]).sample
    hook.remove()
    embedded = model.pos_embed(x["x"])
    return {
        "patch_pos": embedded, "block0": kept["block0"], "out": out, "pos_table": model.pos_embed.pos_embed,
        "temb": first.norm1.emb(x["t"], x["y"], hidden_dtype=embedded.dtype),
    }  # fmt: skip


def sd3_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    return {
        "x": random.normal(2, config.in_channels, *sizes["size"]), "t": torch.tensor([30.0, 700.0]),
        "e": random.normal(2, 5, config.joint_attention_dim), "p": random.normal(2, config.pooled_projection_dim),
    }  # fmt: skip


def sd3(model: nn.Module, x: Arrays) -> Arrays:
    out = model(x["x"], encoder_hidden_states=x["e"], pooled_projections=x["p"], timestep=x["t"]).sample
    return {"out": out, "temb": model.time_text_embed(x["t"], x["p"])}


CONDITION = (3, 7)  # where OmniGen's condition image lies in the prompt


def omnigen_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    (h, w), b, p, n = sizes["size"], sizes["rows"], config.patch_size, 12
    collate, known, count = OmniGenCollator(), torch.ones(b, n, dtype=torch.long), h * w // p**2
    mask, _ = collate.create_mask(known, [count] * b)
    return {
        "x": random.normal(b, config.in_channels, h, w), "t": torch.tensor([0.37, 0.81][:b]),
        "ids": random.ids(config.vocab_size, b, n), "im": random.normal(b, config.in_channels, 2 * p, 2 * p),
        "mask": collate.adjust_attention_for_input_images(mask, {i: [CONDITION] for i in range(b)}),
        "pos": collate.create_position(known, [count] * b),
    }  # fmt: skip


def omnigen(model: nn.Module, x: Arrays) -> Arrays:
    images, where = list(x["im"].split(1)), {i: [CONDITION] for i in range(len(x["x"]))}
    out = model(x["x"], x["t"], x["ids"], images, where, attention_mask=x["mask"], position_ids=x["pos"])
    return {"out": out.sample}


def cosmos3_inputs(config: Any, sizes: dict[str, Any], random: Inputs) -> Arrays:
    (t, h, w), n, p = sizes["grid"], 6, config.latent_patch_size
    text = torch.arange(n).expand(3, n)
    grid = torch.stack(torch.meshgrid(torch.arange(t) + n, torch.arange(h), torch.arange(w), indexing="ij"))
    return {
        "ids": random.ids(config.vocab_size, n), "z": random.normal(1, config.latent_channel, t, h * p, w * p),
        "pos": torch.cat([text, grid.reshape(3, -1)], 1),
        "pos1": torch.cat([text, torch.full((3, t * h * w), n)], 1), "t": torch.full((t * h * w,), 640.0),
    }  # fmt: skip


def cosmos3(model: nn.Module, x: Arrays) -> Arrays:
    p, n = model.config.latent_patch_size, len(x["ids"])
    shape = (x["z"].shape[2], x["z"].shape[3] // p, x["z"].shape[4] // p)
    where = torch.arange(n, x["pos"].shape[1])

    def call(position: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = []
        hooks = [norm.register_forward_hook(lambda m, given, out: kept.append(out)) for norm in
                 (model.norm, model.norm_moe_gen)]  # fmt: skip
        out = model(
            input_ids=x["ids"], text_indexes=torch.arange(n), position_ids=position, und_len=n,
            sequence_length=position.shape[1], vision_tokens=[x["z"]], vision_token_shapes=[shape],
            vision_sequence_indexes=where, vision_mse_loss_indexes=where, vision_timesteps=x["t"],
            vision_noisy_frame_indexes=[torch.arange(shape[0])],
        )  # fmt: skip
        for hook in hooks:
            hook.remove()
        return out.sample[0], *kept

    velocity, und, gen = call(x["pos"])
    shared, shared_und, _ = call(x["pos1"])
    return {
        "velocity": velocity, "h_und": und, "h_gen": gen, "logits": model.lm_head(und), "velocity_sharedpos": shared,
        "logits_sharedpos": model.lm_head(shared_und),
    }  # fmt: skip


def released(state: Arrays) -> Arrays:
    """The arrays under their released names: transformers 5 holds the matrices of all experts of a layer as one array.

    'experts.gate_up_proj' [E, 2 F, D] is gate_proj and up_proj of each expert, 'experts.down_proj' is [E, D, F].
    """
    found: Arrays = {}
    for key, x in state.items():
        before, _, name = key.rpartition(".experts.")
        if not before or x.ndim != 3:
            found[key] = x.detach()
            continue
        parts = zip(("gate_proj", "up_proj"), x.chunk(2, 1), strict=True) if "gate_up" in name else [("down_proj", x)]
        found |= {f"{before}.experts.{e}.{n}.weight": w[e].detach() for n, w in parts for e in range(len(w))}
    return found


CALLS: dict[str, tuple[Callable[..., Arrays], Callable[..., Arrays]]] = {
    r"(Llama|Qwen2|Qwen3|Qwen3Moe)ForCausalLM": (language_inputs, language),
    r"SiglipVisionModel": (siglip_inputs, siglip),
    r"AutoencoderKL": (autoencoder_inputs, autoencoder),
    r"DiTTransformer2DModel": (dit_inputs, dit),
    r"SD3Transformer2DModel": (sd3_inputs, sd3),
    r"OmniGenTransformer2DModel": (omnigen_inputs, omnigen),
    r"Cosmos3OmniTransformer": (cosmos3_inputs, cosmos3),
    **CODE_CALLS,
}


def build(kind: str, arguments: dict[str, Any]) -> tuple[nn.Module, str, dict[str, Any]]:
    """(model, source, its config as its library saves it)."""
    if hasattr(transformers, kind):
        cls = getattr(transformers, kind)
        arguments = copy.deepcopy(arguments)  # transformers writes into it
        groups = arguments.pop("groupnorm_groups", 0)
        model = cls(cls.config_class(**arguments))
        for module in model.modules():
            if isinstance(module, nn.GroupNorm) and groups:
                module.num_groups = groups
        return model, f"transformers {transformers.__version__} {kind}", model.config.to_dict()
    if kind in ("AutoencoderKL", "VQModel"):
        blocks = len(arguments["block_out_channels"])
        names = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
        arguments = names | arguments
    cls = Cosmos3OmniTransformer if kind == "Cosmos3OmniTransformer" else getattr(diffusers, kind)
    model = cls(**arguments)
    return model, f"diffusers {diffusers.__version__} {kind}", dict(model.config)


def write(folder: pathlib.Path, name: str, kind: str, arguments: dict[str, Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = {key[3:]: value for key, value in arguments.items() if key.startswith("in.")}
    arguments = {key: value for key, value in arguments.items() if not key.startswith("in.")}
    if kind.startswith(("Chameleon", "Emu3")):
        arguments |= {"vocabulary_map": vocabulary(kind, arguments, generator)}
    model, source, saved = build(kind, arguments)
    model.eval()
    randomise(model, generator)
    make, call = next(found for pattern, found in CALLS.items() if re.fullmatch(pattern, kind))
    inputs = make(model.config, sizes, Inputs(generator))
    with torch.no_grad():
        outputs = call(model, dict(inputs))
        doubled = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
        exact = call(copy.deepcopy(model).double(), doubled)
    whole = [key for key, x in outputs.items() if not x.is_floating_point()]
    assert all(torch.equal(outputs[key], exact[key]) for key in whole), "ids differ in float64"
    lowest = torch.finfo(torch.float32).min  # transformers hides logits so
    noise = {
        key: float((x - exact[key])[x > lowest].abs().max()) for key, x in outputs.items() if key not in whole
    }  # fmt: skip
    weights = {key: x.contiguous().clone() for key, x in released(model.state_dict()).items()}
    if arguments.get("tie_word_embeddings"):
        del weights["lm_head.weight"]
    about = {
        "name": name, "source": source, "seed": seed, "config": arguments, "hf_config": saved, "f32_vs_f64": noise,
        "tol": {key: {"rtol": 1e-4, "atol": max(2e-5, 20 * x)} for key, x in noise.items()}, "exact": whole,
        "weights": {key: list(x.shape) for key, x in weights.items()},
    }  # fmt: skip
    save_file(weights, folder / f"{name}.safetensors")
    arrays = {f"in.{key}": x for key, x in inputs.items()} | {f"out.{key}": x for key, x in outputs.items()}
    np.savez_compressed(folder / f"{name}.npz", **{key: x.numpy() for key, x in arrays.items()})
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1, default=str))
    print(f"{name}: {source.split()[-1]}, {len(weights)} weights, noise {max(noise.values()):.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="is created; holds three files for each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a regular expression on the names of variants")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for kind, variants in VARIANTS.items():
        for number, (name, changes) in enumerate(variants.items()):
            if re.search(options.only, name):
                seed = 1000 * options.seed + number
                write(options.folder, f"{name}_seed{options.seed}", kind, BASE[kind] | changes, seed)


if __name__ == "__main__":
    main()
