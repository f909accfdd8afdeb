"""Classifier-free guidance, by the text and by each kind of media of a prompt, with renormalisation."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Evaluate = Callable[[], jax.Array]
# The axes of a prediction [B, N, E] over which its length is measured: over a whole image, or for each token.
RENORMS = {"none": (), "global": (-2, -1), "channel": (-1,), "text_channel": (-1,)}
# What the predictions without a kind of media see of a prompt: all else, or nothing of its text either.
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
    equation 3; Chameleon). Each further kind of media, such as sounds, has a prediction x without it, and adds
    (sound - 1) (v - x), or (sound - 1) (u - x): that equals the formulas above, and no kind comes before the others.

    Attributes:
      scale: scale of the text.
      media: scales of the kinds of media that guide, numbers or float32 [B, 1, 1]; 1 means no guidance by them.
      low, high: the interval of t in which guidance applies.
      against: a row of `AGAINST`: what the predictions without a kind of media see, its 'text' or 'nothing' of it.
      least: the least factor of the renormalisation; the largest is 1.
      renorm: how the guided velocity gets the length of the conditional one: a key of `RENORMS`; 'global': of a whole
        image, 'channel': of each token, 'text_channel': of each token before the images guide (BAGEL's CFG-Renorm).
    """

    scale: jax.Array
    low: jax.Array
    high: jax.Array
    media: tuple[jax.Array | float, ...] = ()
    least: jax.Array | float = 0.0
    renorm: str = dataclasses.field(default="none", metadata={"static": True})
    against: str = dataclasses.field(default="text", metadata={"static": True})

    def predict(
        self, t: jax.Array, conditional: jax.Array, without_text: Evaluate, *without_media: Evaluate
    ) -> jax.Array:
        """Computes the guided prediction [B, N, E] at the time t (scalar)."""

        def guided():
            media = [without() for without in without_media]
            return self.combine(conditional, without_text(), *media)

        return jax.lax.cond(self.applies(t), guided, lambda: conditional)

    def combine(self, conditional: jax.Array, without_text: jax.Array, *without_media: jax.Array) -> jax.Array:
        """Combines the predictions [B, N, E], one of them for each of `media`, to the guided one."""
        v = without_text + self.scale * (conditional - without_text)
        if self.renorm == "text_channel":
            v = self._renormed(v, conditional)
        v = self._with_media(v, without_text, without_media)
        return v if self.renorm in ("none", "text_channel") else self._renormed(v, conditional)

    def _with_media(self, v: jax.Array, without_text: jax.Array, without: Sequence[jax.Array]) -> jax.Array:
        """Guides the prediction v [B, N, E], which the text guides, by each kind of media."""
        if not without:
            return v
        guides = without_text if self.against == "nothing" else v
        first, *others = zip(self.media, without, strict=True)
        scale, w = first
        result = w + scale * (v - w) if self.against == "text" else v + (scale - 1) * (without_text - w)
        for scale, w in others:
            result = result + (scale - 1) * (guides - w)
        return result

    def of_logits(self, logits: Sequence[jax.Array]) -> jax.Array:
        """Guides the logits [B, V] of one or more prompts; the interval does not matter, as ids have no noise level.

        Logits that differ by a constant are the same probabilities, so log-probabilities are not needed (Emu3)."""
        if len(logits) == 1:
            return logits[0]
        first, *others = (x[:, None] for x in logits)
        plain = dataclasses.replace(self, renorm="none")  # which is of velocities
        return plain.combine(first, *others)[:, 0]

    def _renormed(self, v: jax.Array, conditional: jax.Array) -> jax.Array:
        def length(x):
            return jnp.sqrt(jnp.sum(jnp.square(x), RENORMS[self.renorm], keepdims=True))

        return v * jnp.clip(length(conditional) / (length(v) + 1e-8), self.least, 1.0)

    def applies(self, t: jax.Array) -> jax.Array:
        return jnp.logical_and(t >= self.low, t < self.high)
