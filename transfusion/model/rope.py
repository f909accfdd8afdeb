"""Rotary position embedding, in its rotate-half form, over one or more axes (RoFormer, arXiv 2104.09864)."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import check


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for longer contexts.

    Attributes:
      kind: 'none' leaves them as they are. 'linear' (arXiv 2306.15595) divides all by `factor`. 'llama3' (Llama 3.1)
        divides those of long waves by `factor`, keeps those of short waves, and blends those between. 'longrope' (arXiv
        2402.13753, Phi-3) divides each frequency by its own factor: that of `short` while all positions are below
        `original`, else that of `long`.
      factor: the divisor of 'linear' and 'llama3'.
      low, high: with 'llama3', waves longer than `original / low` are long, and those shorter than `original / high`
        are short.
      original: the context length of pretraining.
      maximum: the context length after stretching.
      short, long: the factors of 'longrope', K / 2 each.
    """

    kind: str = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    maximum: int = 8192
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self):
        check("model.released.rope_scaling.kind", self.kind, SCALINGS)

    @property
    def magnitude(self) -> float:
        """The factor by which cosines and sines are multiplied; it is 1 for all kinds but 'longrope'."""
        stretch = self.maximum / self.original
        if self.kind != "longrope" or stretch <= 1:
            return 1.0
        return math.sqrt(1 + math.log(stretch) / math.log(self.original))

    def scaled(self, frequency: np.ndarray, position: jax.Array) -> np.ndarray | jax.Array:
        """The frequencies [K / 2] to use at these positions, float32."""
        if self.kind == "linear":
            frequency = frequency / self.factor
        elif self.kind == "llama3":
            turns = self.original * frequency / (2 * np.pi)  # of each wave within the original context
            blend = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            frequency = (1 - blend) * frequency / self.factor + blend * frequency
        elif self.kind == "longrope":
            short, long = ((frequency / np.asarray(f)).astype(np.float32) for f in (self.short, self.long))
            return jnp.where(jnp.max(position) < self.original, short, long)
        return frequency.astype(np.float32)


SCALINGS = ("none", "linear", "llama3", "longrope")


def axis_of(half: int, axes: int, sections: Sequence[int] = (), interleaved: bool = False) -> np.ndarray:
    """Returns, for each of the K / 2 frequencies, the axis whose coordinate it multiplies: int [half].

    Args:
      half: K / 2.
      axes: number of coordinates.
      sections: how many frequencies each axis has, in order of the axes; () splits them evenly and gives the rest to
        the first axis.
      interleaved: whether the axes take turns, as in Mogao and Cosmos, so that every axis has high and low frequencies.
        The first axis has all frequencies that remain once the others have used up their share.

    Raises:
      ValueError: if there is not one section per axis or they do not sum to `half`.
    """
    sections = tuple(sections) or (half - (axes - 1) * (half // axes), *[half // axes] * (axes - 1))
    if len(sections) != axes or sum(sections) != half:
        raise ValueError(f"rope sections {sections} must be {axes} numbers that sum to {half}")
    if not interleaved:
        return np.repeat(np.arange(axes), sections)
    axis = np.zeros(half, int)
    for number in range(1, axes):
        axis[number : axes * sections[number] : axes] = number
    return axis


def angles(
    position: jax.Array,
    head_size: int,
    theta: float,
    sections: Sequence[int] = (),
    interleaved: bool = False,
    scaling: RopeScaling = RopeScaling(),
) -> jax.Array:
    """The angles by which heads are rotated, float32 [B, L, K / 2], at int32 coordinates [B, L, A].

    `theta` is the base of the geometric series of wave lengths. For `sections` and `interleaved` see `axis_of`, for
    `scaling` see `RopeScaling`.
    """
    half = head_size // 2
    frequency = scaling.scaled(theta ** (-np.arange(half, dtype=np.float64) / half), position)
    axis = axis_of(half, position.shape[-1], sections, interleaved)
    return position.astype(jnp.float32)[..., axis] * frequency[None, None]


def turns(angle: jax.Array, magnitude: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The cosines (c, c) and sines (-s, s) of angles [B, L, K / 2], for `rotate`: float32 [B, L, 1, K] each.

    All layers share them; the barrier keeps the compiler from computing them anew wherever they are used.
    """
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    if magnitude != 1:
        cos, sin = cos * magnitude, sin * magnitude
    return jax.lax.optimization_barrier((jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)))


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + K / 2) of heads x [B, L, H, K], in float32; `turn` is what `turns` returns."""
    cos, sin = turn
    y = x.astype(jnp.float32)
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)
