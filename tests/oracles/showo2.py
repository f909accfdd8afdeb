"""Show-o2: text and fused image tokens, and the flow head over the whole sequence."""

import dataclasses

import jax
import numpy as np

from oracles import Oracle, run
from oracles.diffusion import image_inputs, latents, tokens
from oracles.language import meta, text_inputs
from transfusion.model.transformer import TrunkInputs
from transfusion.model.unified import UnifiedModel


def published(config: dict, patches: int) -> dict:
    llm, vit, head = config["llm"], config["siglip"], config["head"]
    common = {"num_hidden_layers": "layers", "num_attention_heads": "heads", "intermediate_size": "inter"}

    def text(of: dict) -> dict:
        known = {theirs: of[ours] for theirs, ours in common.items()}
        return known | {"hidden_size": of["hidden"], "num_key_value_heads": of["kv"]}

    vision = {theirs: vit[ours] for theirs, ours in common.items()} | {"hidden_size": vit["hidden"]}
    words = head["rope"].split()
    head_config = text(head) | {"head_dim": head["head_dim"], "qk_norm": head["qk_norm"]}
    head_config["rope_theta"] = float(words[words.index("theta") + 1])
    scaling = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
    head_config["rope_scaling"] = scaling | {"rope_type": "llama3", "factor": float(words[words.index("factor") + 1])}
    del head_config["num_hidden_layers"]
    return {
        "_class_name": "Showo2Qwen2_5", "llm_vocab_size": llm["vocab"], "image_latent_dim": config["latent"],
        "image_latent_height": patches, "image_latent_width": patches, "patch_size": config["patch"],
        "hidden_size": llm["hidden"], "clip_latent_dim": vit["hidden"], "num_diffusion_layers": head["layers"],
        "llm_config": text(llm) | {"vocab_size": llm["vocab"], "rope_theta": llm["theta"], "rms_norm_eps": 1e-6},
        "vision_config": vision, "diffusion_head_config": head_config,
    }  # fmt: skip


def showo2(oracle: Oracle) -> dict[str, np.ndarray]:
    x = oracle.inputs
    patch = oracle.config["patch"]
    imported, params, _ = oracle.load(published(oracle.config, x["lat"].shape[2] // patch))
    b, length = x["txt"].shape
    starts, count = x["mp"][:, 0, 0], int(x["mp"][0, 0, 1])
    image = starts[:, None] + np.arange(count)
    text = np.stack([np.setdiff1d(np.arange(length), row) for row in image])
    content, place = tokens(x["lat"], patch)
    content = np.pad(content, ((0, 0), (1, 0), (0, 0)))
    place = np.pad(place, ((0, 0), (1, 0), (0, 0)), constant_values=-1)
    inputs = {
        "text": text_inputs(np.take_along_axis(x["txt"], text, 1), text, order=text),
        "image": dataclasses.replace(
            image_inputs(content, place, x["t"], position=image[..., None]),
            metadata=meta(image.shape, order=image, span=1),
        ),
    }

    def call(model: UnifiedModel, inputs):
        encoded = model.encode(inputs)
        vector = model.conditions(inputs)["image"].vector
        # Their text head reads the image's tokens too, as the first trunk leaves them.
        embedded = {name: model.embed(name, part, vector)[0] for name, part in inputs.items()}
        tables = [{name: getattr(part, field) for name, part in inputs.items()} for field in ("position", "metadata")]
        first = model.trunk(TrunkInputs(embedded, *tables))
        of_image = model.head_of("text")(first["image"], None)
        return model.head("text", encoded["text"]), of_image, model.head("image", encoded["image"]), vector[:, 0]

    of_text, of_image, velocity, vector = run(imported, params, call, inputs)
    logits = np.zeros((b, length, of_text.shape[-1]), np.float32)
    np.put_along_axis(logits, text[..., None], np.asarray(of_text), 1)
    np.put_along_axis(logits, image[..., None], np.asarray(of_image), 1)
    follows = x["lab"][:, 1:]
    log = np.asarray(jax.nn.log_softmax(logits[:, :-1]))
    chosen = np.take_along_axis(log, np.maximum(follows, 0)[..., None], -1)[..., 0]
    wanted, _ = tokens(x["vl"], patch)
    return {
        "logits": logits, "velocity": latents(velocity[:, 1:], x["lat"].shape[2:], patch), "time_embed": vector,
        "loss_ntp": -chosen[follows >= 0].mean(), "loss_flow": np.square(velocity[:, 1:] - wanted).mean(),
    }  # fmt: skip


CHECKS = {r"showlab/Show-o \S+ show-o2": showo2}
