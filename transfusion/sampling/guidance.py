"""Classifier-free guidance, by one condition or by two nested ones, with renormalisation."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Evaluate = Callable[[], jax.Array]
# The axes of a prediction [B, N, E] over which its length is measured: over a whole image, or for each token.
RENORMS = {"none": (), "global": (-2, -1), "channel": (-1,), "text_channel": (-1,)}
# The third prediction sees the prompt's text, or nothing of the prompt.
AGAINST = ("text", "nothing")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """u + scale (c - u) of the conditional prediction c and the unconditional u (arXiv 2207.12598, equation 6).

    Only for low <= t < high (arXiv 2404.07724); outside, the unconditional prediction is not computed. Noise, data and
    velocity are affine in each other at a given x_t, so it does not matter which of them is guided - but for the
    renormalisation, which is meant for velocities.

    With a third prediction, without the images of the prompt, the second guides by the text and the third by the
    images: w + image (v - w), v the prediction guided by the text (BAGEL, arXiv 2505.14683). With a third one without
    the text, too, the scales do not multiply: w + image (u - w) + scale (c - u) (InstructPix2Pix, arXiv 2211.09800,
    equation 3; Chameleon).

    Attributes:
      scale, image: scales of the text and of the images; an `image` of 1 means no guidance by images.
      low, high: the interval of t in which guidance applies.
      against: the part of the prompt that the third prediction sees: its 'text', or 'nothing'.
      least: the least factor of the renormalisation; the largest is 1.
      renorm: how the guided velocity gets the length of the conditional one: a key of `RENORMS`; 'global': of a whole
        image, 'channel': of each token, 'text_channel': of each token before the images guide (BAGEL's CFG-Renorm).
    """

    scale: jax.Array
    low: jax.Array
    high: jax.Array
    image: jax.Array | float = 1.0
    least: jax.Array | float = 0.0
    renorm: str = dataclasses.field(default="none", metadata={"static": True})
    against: str = dataclasses.field(default="text", metadata={"static": True})

    def predict(
        self,
        t: jax.Array,
        conditional: jax.Array,
        without_text: Evaluate,
        without_images: Evaluate | None = None,
    ) -> jax.Array:
        """Computes the guided prediction [B, N, E] at the time t (scalar)."""

        def guided():
            w = None if without_images is None else without_images()
            return self.combine(conditional, without_text(), w)

        return jax.lax.cond(self.applies(t), guided, lambda: conditional)

    def combine(
        self, conditional: jax.Array, without_text: jax.Array, without_images: jax.Array | None = None
    ) -> jax.Array:
        """Combines two or three predictions [B, N, E] to the guided one."""
        v = without_text + self.scale * (conditional - without_text)
        if self.renorm == "text_channel":
            v = self._renormed(v, conditional)
        if without_images is not None and self.against == "nothing":
            v = v + (self.image - 1) * (without_text - without_images)
        elif without_images is not None:
            v = without_images + self.image * (v - without_images)
        return v if self.renorm in ("none", "text_channel") else self._renormed(v, conditional)

    def of_logits(self, logits: Sequence[jax.Array]) -> jax.Array:
        """Guides the logits [B, V] of one to three prompts; the interval does not matter, as ids have no noise level.

        Logits that differ by a constant are the same probabilities, so log-probabilities are not needed (Emu3)."""
        if len(logits) == 1:
            return logits[0]
        conditional, without_text, *third = (x[:, None] for x in logits)
        plain = dataclasses.replace(self, renorm="none")  # which is of velocities
        return plain.combine(conditional, without_text, third[0] if third else None)[:, 0]

    def _renormed(self, v: jax.Array, conditional: jax.Array) -> jax.Array:
        def length(x):
            return jnp.sqrt(jnp.sum(jnp.square(x), RENORMS[self.renorm], keepdims=True))

        return v * jnp.clip(length(conditional) / (length(v) + 1e-8), self.least, 1.0)

    def applies(self, t: jax.Array) -> jax.Array:
        return jnp.logical_and(t >= self.low, t < self.high)
