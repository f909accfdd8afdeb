"""The patch discriminator of an autoencoder's adversarial loss."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.errors import UsageError
from transfusion.model.blocks import Conv, GroupNorm
from transfusion.model.parameters import param, zeros

HALVE = ((1, 1), (1, 1))


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """A patch discriminator (Isola et al., arXiv 1611.07004, section 3.2.2) with the hinge loss.

    Attributes:
      weight: the weight of the adversarial term, with which reconstructions learn to pass for images; 0 has no
        discriminator.
      start: steps before the term counts; the discriminator learns from then on, too.
      channels: channels of the discriminator's layers, each of which halves the image.
    """

    weight: float = 0.0
    start: int = 0
    channels: tuple[int, ...] = (32, 64)

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.weight < 0 or self.start < 0 or not self.channels or min(self.channels) < 1:
            raise UsageError("codec.adversarial: weight and start must not be negative, channels must be positive")


class PatchDiscriminator(nnx.Module):
    """Images [N, H, W, C] -> logits [N, h, w], one per patch; high for real ones. `age` counts the updates."""

    def __init__(self, config: AdversarialConfig, image_channels: int, *, rngs: nnx.Rngs):
        self.config = config
        inputs, convs, norms = image_channels, [], []
        for i, outputs in enumerate(config.channels):
            convs.append(Conv(inputs, outputs, size=4, stride=2, padding=HALVE, rngs=rngs))
            # Groups instead of a batch norm, so that an image's logits do not depend on the other images.
            norms.append(GroupNorm(outputs, 1, rngs=rngs) if i else None)
            inputs = outputs
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.out = Conv(inputs, 1, axes=("conv_in", None), rngs=rngs)
        self.age = param(rngs, (), (), zeros)

    @property
    def active(self) -> jax.Array:
        """1 once `start` updates have been made, 0 before."""
        return jax.lax.stop_gradient((self.age[...] >= self.config.start).astype(jnp.float32))

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            x = jax.nn.leaky_relu(x if norm is None else norm(x), 0.2)
        return self.out(x)[..., 0].astype(jnp.float32)


def hinge(discriminator: PatchDiscriminator, real: jax.Array, fake: jax.Array) -> dict[str, jax.Array]:
    """Both sides of the adversarial game as terms [N] of one loss, each a mean over the patches of images [N, H, W, C].

    'adversarial' has gradients only for whatever made `fake`, and 'discriminator' only for the discriminator, so that
    one gradient serves both (hinge loss of Lim and Ye, arXiv 1705.02894, eq. 12 and 13).
    """
    graph, state = nnx.split(discriminator)
    still = nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))
    wrong = jax.nn.relu(1 - discriminator(real)) + jax.nn.relu(1 + discriminator(jax.lax.stop_gradient(fake)))
    active = discriminator.active
    return {
        "adversarial": -active * discriminator.config.weight * jnp.mean(still(fake), axis=(1, 2)),
        "discriminator": active * jnp.mean(wrong, axis=(1, 2)),
    }
