"""Inputs and outputs of models of image codes, for `make_oracles.py`; `random` is its `Inputs`."""

from typing import Any

import torch
from torch import nn

Arrays = dict[str, torch.Tensor]


def vocabulary(kind: str, arguments: dict[str, Any], generator: torch.Generator) -> dict[str, int]:
    """Where the image codes are in a vocabulary: anywhere."""
    emu3 = kind.startswith("Emu3")
    text, codes = (arguments["text_config"] if emu3 else arguments), arguments["vq_config"]
    count = codes["codebook_size"] if emu3 else codes["num_embeddings"]
    free = (torch.randperm(text["vocab_size"] - 3, generator=generator) + 3).tolist()
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = [f"<|visual token {i:06d}|>" if emu3 else f"IMGIMG{str(i).translate(letters)}Z" for i in range(count)]
    return dict(zip(["<image>", "<|extra_200|>", *names], free, strict=False))


def placeholders(random: Any, high: int, image: int, rows: list[int]) -> torch.Tensor:
    """Text, then so many tokens that stand for an image, then text; all rows of one length."""
    made = [[*random.ids(high, 3).tolist(), *[-1] * n, *random.ids(high, max(rows) - n + 2).tolist()] for n in rows]
    return torch.tensor(
        [[image if i == -1 else (i if i != image else (image + 1) % high) for i in row] for row in made]
    )


def chameleon_inputs(config: Any, sizes: dict[str, Any], random: Any) -> Arrays:
    codes = config.vq_config
    side = codes.resolution >> (len(codes.channel_multiplier) - 1)
    return {
        "px": random.normal(2, codes.in_channels, codes.resolution, codes.resolution),
        "ids": placeholders(random, config.vocab_size, config.image_token_id, [side * side] * 2),
    }


def chameleon(model: nn.Module, x: Arrays) -> Arrays:
    coded = model.model.vqmodel.encode(x["px"], return_dict=True)
    hidden = model.model(input_ids=x["ids"], pixel_values=x["px"]).last_hidden_state
    return {
        "vq_latent": coded.last_hidden_state, "vq_ids": coded.image_tokens,
        "vq_quant": coded.quantized_last_hidden_state, "bpe_ids": model.get_image_tokens(x["px"]),
        "logits": model(input_ids=x["ids"], pixel_values=x["px"]).logits, "raw_logits": model.lm_head(hidden),
    }  # fmt: skip


def emu3_inputs(config: Any, sizes: dict[str, Any], random: Any) -> Arrays:
    codes, down = config.vq_config, 2 ** (len(config.vq_config.channel_multiplier) - 1)
    given = torch.tensor(sizes["sizes"])
    h, w = given.max(0).values.tolist()
    rows = [a // down * (b // down + 1) for a, b in sizes["sizes"]]
    return {
        "px": random.normal(len(rows), codes.in_channels, h, w), "sz": given,
        "ids": placeholders(random, config.text_config.vocab_size, config.image_token_id, rows),
        "toks": random.ids(codes.codebook_size, 1, h // down, w // down),
        "vid": random.normal(1, sizes["frames"], codes.in_channels, h, w),
    }  # fmt: skip


def emu3(model: nn.Module, x: Arrays) -> Arrays:
    codes = model.model.vqmodel
    coded = codes.encode(x["px"], x["sz"], return_dict=True)
    # Sizes crop the first two axes of what they are given, which of clips are others.
    video = codes.encode(x["vid"], torch.full((1, 2), 1000), return_dict=True)
    return {
        "bpe_ids": model.model.get_image_tokens(x["px"], x["sz"]), "vq_latent": coded.last_hidden_state,
        "vq_ids": coded.image_tokens[0], "vq_decode": codes.decode(x["toks"]),
        "logits": model(input_ids=x["ids"], pixel_values=x["px"], image_sizes=x["sz"]).logits,
        "vid_ids": video.image_tokens[0], "vid_latent": video.last_hidden_state,
    }  # fmt: skip


def janus_inputs(config: Any, sizes: dict[str, Any], random: Any) -> Arrays:
    seen, codes = config.vision_config, config.vq_config
    n, side = (seen.image_size // seen.patch_size) ** 2, 4 << (len(codes.channel_multiplier) - 1)
    return {
        "px": random.normal(2, seen.num_channels, seen.image_size, seen.image_size),
        "ids": placeholders(random, config.text_config.vocab_size, config.image_token_id, [n, n]),
        "tok": random.ids(codes.num_embeddings, 2, n), "prompt": random.ids(config.text_config.vocab_size, 2, 5),
        "pxvq": random.normal(2, codes.in_channels, side, side),
    }  # fmt: skip


def janus(model: nn.Module, x: Arrays) -> Arrays:
    seen = model.model.get_image_features(x["px"])
    coded = model.model.vqmodel.encode(x["pxvq"], return_dict=True)
    embeds = model.prepare_embeddings_for_image_generation(x["tok"])
    prompt = model.get_input_embeddings()(x["prompt"])
    hidden = model.model.language_model(inputs_embeds=torch.cat([prompt, embeds[:, :-1]], 1)).last_hidden_state
    return {
        "vit": seen.last_hidden_state, "aligned": seen.pooler_output,
        "und_logits": model(input_ids=x["ids"], pixel_values=x["px"]).logits, "gen_embeds": embeds,
        "gen_logits": model.model.generation_head(hidden[:, prompt.shape[1] - 1 :]),
        "vq_decode": model.model.vqmodel.decode(x["tok"]), "vq_latent": coded.last_hidden_state,
        "vq_ids": coded.image_tokens,
    }  # fmt: skip


def vqmodel_inputs(config: Any, sizes: dict[str, Any], random: Any) -> Arrays:
    h, w = sizes["size"]
    down = len(config.block_out_channels) - 1
    return {
        "px": random.normal(2, config.in_channels, h, w),
        "ids": random.ids(config.num_vq_embeddings, 2, h >> down, w >> down),
    }


def vqmodel(model: nn.Module, x: Arrays) -> Arrays:
    h = model.encode(x["px"]).latents
    values, loss, (_, _, ids) = model.quantize(h)
    looked_up = model.quantize.get_codebook_entry(x["ids"].flatten(), (*x["ids"].shape, model.quantize.vq_embed_dim))
    return {
        "h": h, "q": values, "commit": loss, "vq_ids": ids, "decode": model.decode(h).sample,
        "decode_ids": model.decode(looked_up, force_not_quantize=True).sample,
    }  # fmt: skip


CODE_CALLS = {
    r"ChameleonForConditionalGeneration": (chameleon_inputs, chameleon),
    r"Emu3ForConditionalGeneration": (emu3_inputs, emu3),
    r"JanusForConditionalGeneration": (janus_inputs, janus),
    r"VQModel": (vqmodel_inputs, vqmodel),
}
