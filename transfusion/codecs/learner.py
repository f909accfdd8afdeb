"""What an autoencoder learns from batches of images: parameters, draws, the loss and its FLOPs. It reads no data.

`transfusion.tasks` adds the data that training needs. `transfusion.learner` is the same for a unified model.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.codecs import losses
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.features import lpips
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.model import codebooks
from transfusion.model.parameters import Params
from transfusion.objectives import Sums


@dataclasses.dataclass(frozen=True, eq=False)
class CodecLearner:
    """An autoencoder over batches: its template, its random numbers and its loss.

    A batch has float32 'images' [B, H, W, C] in [-1, 1], or clips [B, T, H, W, C], with a 'weight' [B].

    Attributes:
      config: the autoencoder's.
      sides: (height, width) of images, (frames, height, width) of clips.
      template: the parameters' shapes and logical axes, and `init(key)`.
      perceptual: the network of the perceptual loss, None if that has no weight.

    Raises:
      UsageError: if the autoencoder cannot represent images or clips of these sides.
    """

    config: AutoencoderConfig
    sides: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "template", autoencoder_template(self.config))
        self.static.code_shape(*self.sides)  # refuses sides that the codec cannot represent
        weight, layers = self.config.perceptual_weight, self.config.perceptual_layers
        object.__setattr__(self, "perceptual", lpips(layers, min(self.sides[-2:])) if weight else None)

    @property
    def static(self) -> Any:
        """The codec without its arrays."""
        return self.template.bind(self.template.shapes)

    def batch_spec(self, rows: int) -> dict[str, Any]:
        shape = (rows, *self.sides, self.config.image_channels)
        return {
            "images": jax.ShapeDtypeStruct(shape, jnp.float32),
            "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }

    def fake_batch(self, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
        spec = self.batch_spec(rows)["images"]
        images = np.random.default_rng(seed).uniform(-1, 1, spec.shape).astype(np.float32)
        return {"images": images, "weight": np.ones(rows, np.float32)}

    def draw(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return self.static.draw(key, batch["weight"].shape[0], self.sides)

    def with_targets(self, params: Params, batch, draws):
        """Returns the draws: all targets are in the batch."""
        return draws

    def totals(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"images": jnp.maximum(jnp.sum(batch["weight"]), 1e-6)}

    def loss(self, params: Params, batch, draws, totals) -> tuple[jax.Array, Sums]:
        """The mean over the images of all terms (see `losses.codec_loss`), and the reductions for the log."""
        model = self.template.bind(params)
        total, sums = losses.codec_loss(model, batch["images"], draws, batch["weight"], self.perceptual)
        return total / totals["images"], sums

    def after_step(self, old: Params, new: Params, statistics: codebooks.Statistics | None) -> Params:
        """Updates the codebook's averages, revives unused codes, and counts the discriminator's steps."""
        result = dict(new)
        if statistics is not None and "codebook" in new.get("quantizer", {}):
            update = codebooks.update(self.config.quantizer, old["quantizer"], new["quantizer"], statistics)
            result["quantizer"] = update
        if "age" in new.get("discriminator", {}):
            result["discriminator"] = new["discriminator"] | {"age": old["discriminator"]["age"] + 1}
        return result

    def activations(self, rows: int) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """The images. There are no tokens that a context could split."""
        return {"task 'autoencoder'": (("batch", "tokens"), (rows, 1))}

    def tokens(self, rows: int) -> int:
        """Pixels of one step."""
        return rows * math.prod(self.sides)

    def flops(self, batch: dict[str, Any]) -> np.ndarray:
        """Model FLOPs of one step on each image: 3 x those of encoding and decoding, as the compiler counts them.

        Of a frozen tower the compiler counts one layer. The networks that only judge the result do not count.

        Returns:
          float64 [B].
        """
        return np.full(len(batch["weight"]), self._image_flops)

    @functools.cached_property
    def _image_flops(self) -> float:
        batch = self.batch_spec(1)

        def forward(params, images):
            model = self.template.bind(params)
            return model.decode(model.encode(images))

        return 3.0 * jax.jit(forward).lower(self.template.shapes, batch["images"]).cost_analysis()["flops"]

    @property
    def medium(self) -> str:
        """The key of a record that it reads."""
        return "video" if self.config.frames else "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, or a clip, that it reads."""
        return (*self.sides, self.config.image_channels)
