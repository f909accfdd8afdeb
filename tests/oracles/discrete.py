"""Models of image codes: Chameleon and Emu3 (one vocabulary), Janus (an embed and a head for codes)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from oracles import Oracle, run
from oracles.codecs import nchw, nhwc
from oracles.diffusion import image_inputs, tokens
from oracles.language import logits, meta, text_inputs
from transfusion.codecs.vq_autoencoder import MovqAutoencoder, VqAutoencoder
from transfusion.interop.family import Imported
from transfusion.interop.importing import load_params
from transfusion.interop.vocabulary import image_tokens
from transfusion.model.unified import UnifiedModel
from transfusion.workdir.portable import CODEC


def released(oracle: Oracle) -> dict[str, Any]:
    """The config, with the groups of the norms that the reference was given behind its config's back."""
    config = dict(oracle.hf_config)
    groups = oracle.config.get("groupnorm_groups")
    if groups:
        config["vq_config"] = config["vq_config"] | {"norm_num_groups": groups}
    return config


def load(oracle: Oracle):
    """(model, its parameters, codec, its parameters)"""
    imported, params, workdir = oracle.load(released(oracle))
    return imported, params, imported.codec, load_params(workdir / CODEC, imported.codec)


def with_images(ids: np.ndarray, placeholder: int, images: np.ndarray) -> np.ndarray:
    """Ids whose placeholders are the images' tokens, in order."""
    ids = ids.copy()
    ids[ids == placeholder] = images.ravel()
    return ids


def text_logits(imported: Imported, params: Any, ids: np.ndarray) -> np.ndarray:
    line = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return np.asarray(run(imported, params, logits, text_inputs(ids, line))[0])


def janus_text(oracle: Oracle, imported: Imported, params: Any) -> dict[str, np.ndarray]:
    """Logits of text round images that the tower reads."""
    x, placeholder = oracle.inputs, oracle.hf_config["image_token_id"]
    stream = imported.experiment.streams["semantic"]
    ids, n = x["ids"], x["ids"].shape[1]
    image = np.stack([np.flatnonzero(row == placeholder) for row in ids])
    words = np.stack([np.flatnonzero(row != placeholder) for row in ids])
    content, place = tokens(x["px"], stream.patch)
    patches = content.shape[1]

    def rows(array: np.ndarray) -> np.ndarray:  # a row of text may hold several images
        return array.reshape(len(ids), -1, array.shape[-1])

    seen = dataclasses.replace(
        image_inputs(rows(content), rows(place), np.ones(len(ids)), position=image[..., None]),
        metadata=meta(image.shape, order=image),
        item=jnp.broadcast_to(jnp.arange(image.shape[1]) // patches, image.shape),
    )
    inputs = {"text": text_inputs(np.take_along_axis(ids, words, 1), words, order=words), "semantic": seen}

    def call(model: UnifiedModel, inputs):
        embed = model.part("semantic").embed
        alone = embed.tower.packed(content, place, jnp.ones((len(content), patches, patches), bool)).last
        encoded = model.encode(inputs)
        head = model.head_of("text")
        of = {name: head(out.hidden, None) for name, out in encoded.items()}
        return alone, embed(inputs["semantic"], None)[0].reshape(*alone.shape[:2], -1), of

    vit, aligned, of = run(imported, params, call, inputs)
    out = np.zeros((len(ids), n, of["text"].shape[-1]), np.float32)
    np.put_along_axis(out, words[..., None], np.asarray(of["text"]), 1)
    np.put_along_axis(out, image[..., None], np.asarray(of["semantic"]), 1)
    return {"vit": vit, "aligned": aligned, "und_logits": out}


def janus_codes(oracle: Oracle, imported: Imported, params: Any) -> dict[str, np.ndarray]:
    """Logits of codes behind a prompt: the first of the prompt's last token."""
    prompt, codes = oracle.inputs["prompt"], oracle.inputs["tok"]
    b, n = prompt.shape
    text = text_inputs(prompt, np.broadcast_to(np.arange(n), prompt.shape))
    order = n + np.broadcast_to(np.arange(codes.shape[1]), codes.shape)
    image = text_inputs(codes, order, order=order)

    def call(model: UnifiedModel, text, image):
        encoded = model.encode({"text": text, "image": image})
        hidden = jnp.concatenate([encoded["text"].hidden[:, -1:], encoded["image"].hidden[:, :-1]], 1)
        return model.embed("image", image)[0], model.head_of("image")(hidden, None)

    embeds, found = run(imported, params, call, text, image)
    return {"gen_embeds": embeds, "gen_logits": found}


def flat_ids(model: VqAutoencoder, px: np.ndarray) -> tuple[Any, ...]:
    """Of images: the encoder's latents, the codes and their values."""
    latents = model.encoder(px)
    quantized = model.quantizer(model.quant(latents))
    return latents, quantized.ids, quantized.values


def chameleon(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, codec, codes = load(oracle)
    config, x = oracle.hf_config, oracle.inputs
    latents, ids, values = run(codec, codes, flat_ids, nhwc(x["px"]))
    tokens_of = np.array(image_tokens(config["vocabulary_map"], codec.experiment.autoencoder.quantizer.codes))
    images = tokens_of[np.asarray(ids)].reshape(len(ids), -1)
    raw = text_logits(imported, params, with_images(x["ids"], config["vocabulary_map"]["<image>"], images))
    hidden = raw.copy()  # transformers lets the model write no image tokens
    hidden[..., tokens_of] = np.finfo(np.float32).min
    return {
        "vq_latent": nchw(latents), "vq_ids": np.ravel(ids), "vq_quant": nchw(values), "bpe_ids": images,
        "raw_logits": raw, "logits": hidden,
    }  # fmt: skip


def emu3(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, codec, codes = load(oracle)
    config, x = oracle.hf_config, oracle.inputs
    ours = codec.experiment.autoencoder

    def coded(model: MovqAutoencoder, clips):
        latents = model.latents(clips)
        return latents, model.quantizer(model.quant(latents)).ids

    def clip(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, 2, -1)

    still = clip(np.repeat(x["px"][:, None], ours.time_down, 1))
    latents, ids = run(codec, codes, coded, still)
    shown = run(codec, codes, lambda model, ids: model.decode(ids)[:, 0], x["toks"][:, None].astype(np.int32))
    moving = run(codec, codes, coded, clip(x["vid"])) if "vid" in x else None
    vocabulary = config["vocabulary_map"]
    tokens_of = np.array(image_tokens(vocabulary, ours.quantizer.codes))
    sizes = x["sz"] // ours.down
    ids = [np.asarray(one)[0, :h, :w] for one, (h, w) in zip(ids, sizes, strict=True)]
    ends = [np.pad(tokens_of[one], ((0, 0), (0, 1)), constant_values=vocabulary["<|extra_200|>"]) for one in ids]
    images = np.concatenate([one.ravel() for one in ends])
    found = {} if moving is None else {"vid_latent": np.moveaxis(moving[0], -1, 2), "vid_ids": np.asarray(moving[1])[0]}
    return found | {
        "bpe_ids": images, "vq_latent": np.moveaxis(latents, -1, 2), "vq_ids": ids[0], "vq_decode": nchw(shown),
        "logits": text_logits(imported, params, with_images(x["ids"], vocabulary["<image>"], images)),
    }  # fmt: skip


def janus(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, codec, codes = load(oracle)
    x = oracle.inputs
    latents, ids, _ = run(codec, codes, flat_ids, nhwc(x["pxvq"]))
    square = x["tok"].reshape(len(x["tok"]), *imported.experiment.streams["image"].grid).astype(np.int32)
    return {
        "vq_latent": nchw(latents), "vq_ids": np.ravel(ids),
        "vq_decode": nchw(run(codec, codes, lambda model, ids: model.decode(ids), square)),
        **janus_text(oracle, imported, params), **janus_codes(oracle, imported, params),
    }  # fmt: skip


def vqmodel(oracle: Oracle) -> dict[str, np.ndarray]:
    imported, params, _ = oracle.load()

    def call(model: VqAutoencoder, images, ids):
        coded = model.code(images, {})
        loss = jnp.mean(sum(coded.terms.values()))
        return model.encoded(images), coded.quantized.ids, coded.z, loss, model.reconstruct(coded.z), model.decode(ids)

    h, ids, q, loss, shown, shown_ids = run(
        imported, params, call, nhwc(oracle.inputs["px"]), oracle.inputs["ids"].astype(np.int32)
    )
    return {
        "h": nchw(h), "vq_ids": np.ravel(ids), "q": nchw(q), "commit": loss, "decode": nchw(shown),
        "decode_ids": nchw(shown_ids),
    }  # fmt: skip


CHECKS = {
    r"transformers \S+ ChameleonForConditionalGeneration": chameleon,
    r"transformers \S+ Emu3ForConditionalGeneration": emu3,
    r"transformers \S+ JanusForConditionalGeneration": janus,
    r"diffusers \S+ VQModel": vqmodel,
}
