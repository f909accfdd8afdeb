"""What each stream learns. One row of `OBJECTIVES` per objective; all losses are per token, reduced as (sum, weight).

An objective has three functions: `draw` makes a step's random numbers for a whole batch (so that they do not depend on
microbatches or devices), `content` what the embed reads, and `loss` the loss per token with further reductions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.batch import StreamSlice
from transfusion.objectives import continuous, next_token
from transfusion.objectives.next_token import NextTokenConfig
from transfusion.objectives.paths import ContinuousConfig

Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


@dataclasses.dataclass(frozen=True)
class ObjectivesConfig:
    """Settings of the objectives; `continuous` is per stream, streams that it does not name take the defaults."""

    next_token: NextTokenConfig = NextTokenConfig()
    continuous: Mapping[str, ContinuousConfig] = dataclasses.field(default_factory=dict)

    def of_continuous(self, stream: str) -> ContinuousConfig:
        return self.continuous.get(stream, ContinuousConfig())


@dataclasses.dataclass(frozen=True)
class Objective:
    """See the module's docstring. `loss(head, encoded, part, draws, config)` gives float32 [B, N] and further Sums."""

    draw: Callable[..., dict[str, jax.Array]]
    content: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, Sums]]


def _next_token_loss(head, encoded, part: StreamSlice, draws, config: NextTokenConfig):
    b, n, d = encoded.hidden.shape
    nll, log_z = next_token.cross_entropy(
        encoded.hidden.reshape(b * n, d), head.kernel[...], part.targets.reshape(-1), config.chunk
    )
    nll, log_z = nll.reshape(b, n), log_z.reshape(b, n)
    weight = part.loss_weight
    extra = {"nll": (jnp.sum(nll * weight), weight.sum())}
    return nll + config.z_loss * jnp.square(log_z), extra


def _continuous_loss(head, encoded, part: StreamSlice, draws, config: ContinuousConfig):
    per_token = continuous.loss(head(encoded.hidden, encoded.skips), part, draws, config)
    return per_token, {"by_time": continuous.by_time(per_token, part, draws)}


def _nothing(head, encoded, part: StreamSlice, draws, config: Any):
    return jnp.zeros(part.loss_weight.shape), {}


OBJECTIVES: dict[str, Objective] = {
    "none": Objective(lambda *_: {}, lambda part, *_: part.tokens if part.values is None else part.values, _nothing),
    "next_token": Objective(lambda *_: {}, lambda part, *_: part.tokens, _next_token_loss),
    "continuous": Objective(continuous.draw, continuous.noised, _continuous_loss),
}


def config_of(name: str, objective: str, config: ObjectivesConfig) -> Any:
    """The settings that an objective's functions take, for the stream `name`."""
    return {"none": None, "next_token": config.next_token}.get(objective, config.of_continuous(name))
