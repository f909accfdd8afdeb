"""How well pictures fit texts, by a released CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343) given by its path.

The folder is one of Hugging Face's: config.json, model.safetensors, tokenizer.json and preprocessor_config.json.
The number is 100 max(cos, 0), as clip-score programs print it; with SigLIP the probability that text and picture belong
together comes with it. Numbers of different models do not compare.

Shape letters: B rows, N tokens, D width, H heads, K head size, E of the space in which they are compared.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import broadcast_to_rank
from PIL import Image

from transfusion.errors import UsageError, require
from transfusion.evaluation.intervals import Score, bootstrap
from transfusion.interop.files import Checkpoint
from transfusion.interop.siglip import ACTIVATION_NAMES
from transfusion.model.block import ACTIVATIONS
from transfusion.model.vit import patches_of

ROWS = 16  # pictures or texts that are read at a time
Arrays = Mapping[str, jax.Array]
_PUNCTUATION = re.compile(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]")


def norm(x: jax.Array, arrays: Arrays, name: str, epsilon: float) -> jax.Array:
    """LayerNorm with the scale and bias `name`."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * _row(arrays[f"{name}.weight"], x) + _row(arrays[f"{name}.bias"], x)


def linear(x: jax.Array, arrays: Arrays, name: str) -> jax.Array:
    """x times the matrix `name` as torch keeps it, [out, in], plus its bias if there is one."""
    y = x @ arrays[f"{name}.weight"].T
    return y + _row(arrays[f"{name}.bias"], y) if f"{name}.bias" in arrays else y


def _row(vector: jax.Array, x: jax.Array) -> jax.Array:
    return broadcast_to_rank(vector, x.ndim)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, causal: bool = False) -> jax.Array:
    """Attention of [B, N, D] over [B, M, D] in heads."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(q.shape[-1])
    if causal:
        seen = np.tri(*scores.shape[2:], dtype=bool)
        scores = jnp.where(_row(jnp.asarray(seen), scores), scores, -jnp.inf)
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores, axis=-1), v).reshape(*q.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class Tower:
    """The Transformer of one side.

    Attributes:
      prefix: begins the names of its arrays.
      layers, heads: their numbers.
      activation: a key of `transfusion.model.block.ACTIVATIONS`.
      epsilon: of the norms.
      side: texts: the most tokens; pictures: the side in pixels.
      patch: of pictures.
    """

    prefix: str
    layers: int
    heads: int
    activation: str
    epsilon: float
    side: int
    patch: int = 0

    def blocks(self, x: jax.Array, arrays: Arrays, causal: bool) -> jax.Array:
        """All layers on x [B, N, D]."""
        for i in range(self.layers):
            at = f"{self.prefix}encoder.layers.{i}"
            y = norm(x, arrays, f"{at}.layer_norm1", self.epsilon)
            q, k, v = (linear(y, arrays, f"{at}.self_attn.{name}_proj") for name in "qkv")
            x = x + linear(attention(q, k, v, self.heads, causal), arrays, f"{at}.self_attn.out_proj")
            y = norm(x, arrays, f"{at}.layer_norm2", self.epsilon)
            x = x + linear(ACTIVATIONS[self.activation](linear(y, arrays, f"{at}.mlp.fc1")), arrays, f"{at}.mlp.fc2")
        return x

    def patches(self, pixels: jax.Array, arrays: Arrays) -> jax.Array:
        """The patches [B, N, D] of pictures [B, H, W, 3]."""
        kernel = arrays[f"{self.prefix}embeddings.patch_embedding.weight"]  # [D, 3, P, P]
        x = patches_of(pixels, self.patch) @ kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
        bias = arrays.get(f"{self.prefix}embeddings.patch_embedding.bias")
        return x if bias is None else x + _row(bias, x)

    def words(self, ids: jax.Array, arrays: Arrays) -> jax.Array:
        """The tokens [B, N, D] of ids int32 [B, N]."""
        table = arrays[f"{self.prefix}embeddings.position_embedding.weight"][: ids.shape[1]]
        return arrays[f"{self.prefix}embeddings.token_embedding.weight"][ids] + broadcast_to_rank(table, 3)


# --- CLIP -------------------------------------------------------------------------------------------------------------


def clip_pictures(tower: Tower, pixels: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, E] of pictures: that of a class token, projected."""
    patches, first = tower.patches(pixels, arrays), arrays[f"{tower.prefix}embeddings.class_embedding"]
    x = jnp.concatenate([jnp.broadcast_to(first.reshape(1, 1, -1), (len(patches), 1, first.size)), patches], axis=1)
    x = x + broadcast_to_rank(arrays[f"{tower.prefix}embeddings.position_embedding.weight"], 3)
    x = tower.blocks(norm(x, arrays, f"{tower.prefix}pre_layrnorm", tower.epsilon), arrays, causal=False)
    return norm(x[:, 0], arrays, f"{tower.prefix}post_layernorm", tower.epsilon) @ arrays["visual_projection.weight"].T


def clip_texts(tower: Tower, ids: jax.Array, last: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, E] of texts int32 [B, N]: that of their end, at `last` [B], projected."""
    x = tower.blocks(tower.words(ids, arrays), arrays, causal=True)
    x = norm(x, arrays, f"{tower.prefix}final_layer_norm", tower.epsilon)
    return x[jnp.arange(len(ids)), last] @ arrays["text_projection.weight"].T


# --- SigLIP -----------------------------------------------------------------------------------------------------------


def siglip_pictures(tower: Tower, pixels: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, D] of pictures: what one learned query reads of them."""
    x = tower.patches(pixels, arrays)
    x = x + broadcast_to_rank(arrays[f"{tower.prefix}embeddings.position_embedding.weight"], 3)
    x = norm(tower.blocks(x, arrays, causal=False), arrays, f"{tower.prefix}post_layernorm", tower.epsilon)
    at = f"{tower.prefix}head"
    weights = jnp.split(arrays[f"{at}.attention.in_proj_weight"], 3)
    biases = jnp.split(arrays[f"{at}.attention.in_proj_bias"], 3)
    probe = jnp.broadcast_to(arrays[f"{at}.probe"], (len(x), *arrays[f"{at}.probe"].shape[1:]))
    q, k, v = (y @ w.T + broadcast_to_rank(b, 3) for y, w, b in zip((probe, x, x), weights, biases, strict=True))
    y = linear(attention(q, k, v, tower.heads), arrays, f"{at}.attention.out_proj")
    z = linear(norm(y, arrays, f"{at}.layernorm", tower.epsilon), arrays, f"{at}.mlp.fc1")
    return (y + linear(ACTIVATIONS[tower.activation](z), arrays, f"{at}.mlp.fc2"))[:, 0]


def siglip_texts(tower: Tower, ids: jax.Array, last: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, D] of texts int32 [B, N], all of the same length: that of the last token."""
    del last
    x = tower.blocks(tower.words(ids, arrays), arrays, causal=False)
    x = norm(x, arrays, f"{tower.prefix}final_layer_norm", tower.epsilon)
    return linear(x[:, -1], arrays, f"{tower.prefix}head")


def as_siglip(text: str) -> str:
    """The text as SigLIP's tokenizer wants it: in lower case, without punctuation."""
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


# --- both -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Family:
    """What the two families differ in.

    The functions of both sides, what is done to texts, the defaults of their configs (activation, epsilon, tokens of a
    text), the mean and deviation of colours, and whether pictures are cropped.
    """

    pictures: Callable[..., jax.Array]
    texts: Callable[..., jax.Array]
    spell: Callable[[str], str]
    activation: str
    epsilon: float
    tokens: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    crops: bool


FAMILIES = {
    "clip": Family(
        clip_pictures, clip_texts, lambda text: text, "quick_gelu", 1e-5, 77,
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), True,
    ),
    "siglip": Family(
        siglip_pictures, siglip_texts, as_siglip, "gelu_pytorch_tanh", 1e-6, 64, (0.5,) * 3, (0.5,) * 3, False,
    ),
}  # fmt: skip


class Similarity:
    """A released CLIP or SigLIP.

    Raises:
      UsageError: if the folder holds none, or lacks a file or an array.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        found = Checkpoint(folder)
        kind = found.config.get("model_type")
        if kind not in FAMILIES:
            raise UsageError(
                f"{folder}: a model of type {kind!r} compares no texts with pictures; give a CLIP or SigLIP"
            )
        self.kind, self.family = kind, FAMILIES[kind]
        self.text = self._tower(found.config, "text")
        self.fill = (found.config.get("text_config") or {}).get("pad_token_id")
        self.vision = self._tower(found.config, "vision")
        kept = [key for key in found.entries if "position_ids" not in key]
        self.arrays = {key: jnp.asarray(found.read(key)) for key in kept}
        for name in (
            "logit_scale",
            f"{self.text.prefix}final_layer_norm.weight",
            f"{self.vision.prefix}post_layernorm.bias",
        ):
            found.entry(name)
        pixels = (
            found.files.read_json("preprocessor_config.json") if found.files.has("preprocessor_config.json") else {}
        )
        self.mean = np.array(pixels.get("image_mean", self.family.mean), np.float32)
        self.deviation = np.array(pixels.get("image_std", self.family.deviation), np.float32)

    def _tower(self, config: Mapping[str, Any], side: str) -> Tower:
        own, family = config.get(f"{side}_config") or {}, self.family
        width = own.get("hidden_size", 512 if side == "text" and self.kind == "clip" else 768)
        activation = own.get("hidden_act", family.activation)
        if activation not in ACTIVATION_NAMES:
            raise UsageError(f"{self.folder}: hidden_act {activation!r} is none of {', '.join(ACTIVATION_NAMES)}")
        common = (
            own.get("num_hidden_layers", 12),
            own.get("num_attention_heads", 8 if width == 512 else 12),
            ACTIVATION_NAMES[activation],
            own.get("layer_norm_eps", family.epsilon),
        )
        if side == "text":
            return Tower("text_model.", *common, own.get("max_position_embeddings", family.tokens))
        patch = own.get("patch_size", 32 if self.kind == "clip" else 16)
        return Tower("vision_model.", *common, own.get("image_size", 224), patch)

    @cached_property
    def _tokenizer(self) -> Any:
        path = self.folder / "tokenizer.json"
        try:
            model = require("tokenizers", "tokenizers").Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise UsageError(f"{path} is no tokenizer: {error}") from error
        model.no_padding()
        model.no_truncation()
        return model

    def ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids int32 [B, N] of texts, begun and ended as the tokenizer's file says and filled up, and the place of
        their end [B]. Longer texts are cut, and end all the same."""
        rows = [self._tokenizer.encode(self.family.spell(text)).ids for text in texts]
        if not all(rows):
            raise UsageError(f"{self.folder / 'tokenizer.json'} gives an empty text no ids: it must begin or end them")
        rows = [row if len(row) <= self.text.side else [*row[: self.text.side - 1], row[-1]] for row in rows]
        last = np.array([len(row) - 1 for row in rows], np.int32)
        fill = [rows[0][-1] if self.fill is None else self.fill]  # SigLIP reads it
        return np.array([row + fill * (self.text.side - len(row)) for row in rows], np.int32), last

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """A picture uint8 [H, W, 1 or 3] as float32 [side, side, 3].

        It is resized by Pillow's bicubic filter; for CLIP by the shorter side, and cropped in the middle."""
        side = self.vision.side
        image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")
        shape = (side, side)
        if self.family.crops:
            shorter = min(image.size)
            shape = tuple(side * length // shorter for length in image.size)
        image = image.resize(shape, Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        values = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / np.float32(255)
        return (values - self.mean[None, None]) / self.deviation[None, None]

    @cached_property
    def _compiled(self) -> tuple[Callable, Callable]:
        def unit(x: jax.Array) -> jax.Array:
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        pictures = jax.jit(lambda arrays, pixels: unit(self.family.pictures(self.vision, pixels, arrays)))
        texts = jax.jit(lambda arrays, ids, last: unit(self.family.texts(self.text, ids, last, arrays)))
        return pictures, texts

    def of_pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The unit vectors float32 [B, E] of pictures uint8 [H, W, 1 or 3]."""
        pixels = np.stack([self.pixels(np.asarray(picture)) for picture in pictures])
        return _in_parts(lambda part: self._compiled[0](self.arrays, part), pixels)

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The unit vectors float32 [B, E] of texts."""
        return _in_parts(lambda *part: self._compiled[1](self.arrays, *part), *self.ids(texts))

    def cosines(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """The cosine of each picture and its text, float64 [B]."""
        if len(pictures) != len(texts) or not len(texts):
            raise UsageError(
                f"{len(pictures)} pictures and {len(texts)} texts: a text for each picture, and at least one"
            )
        products = self.of_pictures(pictures).astype(np.float64) * self.of_texts(texts)
        return products.sum(-1)

    def scores(self, pictures: Sequence[np.ndarray], texts: Sequence[str], seed: int = 0) -> dict[str, Score]:
        """{'clip_score'} or {'siglip_score', 'siglip_probability'} of pictures and their texts, with 95 % bootstrap
        intervals over pairs."""
        cosines = self.cosines(pictures, texts)
        found = {f"{self.kind}_score": bootstrap(100 * np.maximum(cosines, 0), seed=seed)}
        if "logit_bias" in self.arrays:
            scale, bias = (float(self.arrays[name].reshape(())) for name in ("logit_scale", "logit_bias"))
            logits = np.exp(scale) * cosines + bias
            found[f"{self.kind}_probability"] = bootstrap(1 / (1 + np.exp(-logits)), seed=seed)
        return found


def _in_parts(apply: Callable[..., jax.Array], *inputs: np.ndarray) -> np.ndarray:
    """Applies a compiled function to `ROWS` rows at a time; the last part is filled up."""
    results = []
    for first in range(0, len(inputs[0]), ROWS):
        part = [array[first : first + ROWS] for array in inputs]
        spare = ROWS - len(part[0])
        filled = [np.concatenate([array, np.repeat(array[-1:], spare, 0)]) for array in part]
        results.append(np.asarray(apply(*filled))[: len(part[0])])
    return np.concatenate(results)
