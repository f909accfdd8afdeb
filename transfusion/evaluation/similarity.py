"""How well pictures fit texts, by a released CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343) given by its path.

The folder is one of Hugging Face's: config.json, model.safetensors, tokenizer.json and preprocessor_config.json.
The number is 100 max(cos, 0), as clip-score programs print it; with SigLIP the probability that text and picture belong
together comes with it. Numbers of different models do not compare.

Shape letters: B rows, N tokens, E of the space in which they are compared.
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
from PIL import Image

from transfusion.errors import UsageError, require
from transfusion.evaluation.intervals import Score, bootstrap
from transfusion.evaluation.towers import Tower, clip_pictures, clip_texts, siglip_pictures, siglip_texts
from transfusion.interop.files import Checkpoint
from transfusion.interop.siglip import ACTIVATION_NAMES

ROWS = 16  # pictures or texts that are read at a time
_PUNCTUATION = re.compile(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]")


def as_siglip(text: str) -> str:
    """The text as SigLIP's tokenizer wants it: in lower case, without punctuation."""
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


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
