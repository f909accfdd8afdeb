"""Hidden patches of an item, each denoised by itself, given the trunk's output in its place (MAR, arXiv 2406.11838)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.objectives import continuous, masked
from transfusion.objectives.masked import MaskedConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.sequence.arrays import Array, Float, Shaped
from transfusion.sequence.batch import StreamSlice


@dataclasses.dataclass(frozen=True)
class MaskedFlowConfig:
    """What is hidden, and how it is denoised."""

    masked: MaskedConfig
    continuous: ContinuousConfig


def draw(key: jax.Array, part: StreamSlice, config: MaskedFlowConfig) -> dict[str, Shaped[Array, "B ..."]]:
    """Draws the numbers of `masked.draw` and those of `continuous.draw_of_tokens`."""
    hiding_key, flow_key = jax.random.split(key)
    hiding = masked.draw(hiding_key, part, config.masked)
    return hiding | continuous.draw_of_tokens(flow_key, part, config.continuous)


def content(part: StreamSlice, draws: dict[str, jax.Array], config: MaskedFlowConfig) -> Float[Array, "B N E"]:
    """The patches that the embed reads; hidden ones are no numbers."""
    return jnp.where(draws["mask"][..., None], jnp.nan, part.values)


def loss(
    head: Any, hidden: Float[Array, "B N D"], part: StreamSlice, draws: dict[str, jax.Array], config: MaskedFlowConfig
) -> Float[Array, "B N"]:
    """The squared error of each hidden patch, with its weight; 0 for the others."""
    return continuous.loss_of_tokens(head, hidden, part, draws, config.continuous) * draws["weight"]
