"""Objectives say what each stream learns, one row of `OBJECTIVES` each. Losses are per token, summed with their weight.

- `next_token` predicts the next id, for text and codes.
- `masked` predicts the codes that are hidden.
- `continuous` predicts noised latents, by flow matching or DDPM; `paths` has their algebra. 'token_flow' does so for
  one token after the other, and `masked_flow` for those that are hidden.
- `ahead` predicts mean velocities, for drawing in a few steps.
- `contrastive` tells which image belongs to which text.

An objective has four functions. `draw` makes the random numbers of a step for a whole batch, so that they depend
neither on microbatches nor on devices. `clean` gives the numbers that leave every item unchanged. `content` makes the
input of the embed, and `loss` the loss per token with further reductions. A fifth, `target`, is for objectives whose
targets come from the model itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.objectives import ahead, continuous, contrastive, masked, masked_flow, next_token
from transfusion.objectives.contrastive import ContrastiveConfig
from transfusion.objectives.masked import MaskedConfig
from transfusion.objectives.masked_flow import MaskedFlowConfig
from transfusion.objectives.next_token import NextTokenConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.sequence.arrays import Array, Shaped
from transfusion.sequence.batch import StreamSlice

Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)
# The name of the sums that are not logged: a task's `after_step` updates codebooks or the biases of routers with them.
STATISTICS = "statistics"


@dataclasses.dataclass(frozen=True)
class ObjectivesConfig:
    """Settings of the objectives.

    Attributes:
      next_token: of streams that learn the next token.
      masked: of streams that learn hidden codes or patches.
      continuous: of streams that learn to turn noise into latents, by stream; one that it does not name uses the
        defaults.
      contrastive: of streams that are compared.
    """

    next_token: NextTokenConfig = NextTokenConfig()
    masked: MaskedConfig = MaskedConfig()
    continuous: Mapping[str, ContinuousConfig] = dataclasses.field(default_factory=dict)
    contrastive: ContrastiveConfig = ContrastiveConfig()

    def of_continuous(self, stream: str) -> ContinuousConfig:
        return self.continuous.get(stream, ContinuousConfig())

    def of_masked_flow(self, stream: str) -> MaskedFlowConfig:
        return MaskedFlowConfig(self.masked, self.of_continuous(stream))


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective, see the module's docstring; `loss(head, encoded, part, draws, config)` gives float32 [B, N] and
    further Sums. `config(settings, stream)` gives what `draw`, `content` and `loss` take as their `config`.

    `target(predict, part, draws, config)` makes [B, N, E] of every `config.ahead.every`-th row, see `ahead.Predict`.
    `fits(where, config)` raises a UsageError about settings with which the objective does not work.
    `beside(config)` names the streams with whose outputs the loss compares: `draws` then holds (hidden, part) of each.
    They and the stream itself must not see each other, and the loss is one of the whole batch, not of its parts."""

    config: Callable[[ObjectivesConfig, str], Any]
    draw: Callable[..., dict[str, jax.Array]]
    clean: Callable[[StreamSlice], dict[str, jax.Array]]
    content: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, Sums]]
    target: Callable[..., jax.Array] | None = None
    fits: Callable[[str, Any], None] = lambda where, config: None
    beside: Callable[[Any], tuple[str, ...]] = lambda config: ()


def _next_token_loss(head, encoded, part: StreamSlice, draws, config: NextTokenConfig):
    nll, log_z = next_token.token_losses(head, encoded.hidden, part.targets, config.chunk)
    weight = part.loss_weight
    extra = {"nll": (jnp.sum(nll * weight), weight.sum())}
    return nll + config.z_loss * jnp.square(log_z), extra


def _masked_loss(head, encoded, part: StreamSlice, draws, config: MaskedConfig):
    nll, _ = next_token.token_losses(head, encoded.hidden, part.targets)
    weight = part.loss_weight * draws["mask"]
    return nll * draws["weight"], {"nll": (jnp.sum(nll * weight), weight.sum())}


def _continuous_loss(head, encoded, part: StreamSlice, draws, config: ContinuousConfig):
    per_token = continuous.loss(head(encoded.hidden, encoded.skips), part, draws, config)
    return per_token, {"by_time": continuous.by_time(per_token, part, draws)}


def _ahead_loss(head, encoded, part: StreamSlice, draws, config: ContinuousConfig):
    per_token = ahead.loss(head(encoded.hidden, encoded.skips), part, draws, config)
    far = part.loss_weight * (continuous.spread(draws["ahead"], part.item)[..., 0] > 0)
    still = part.loss_weight - far
    extra = {"velocity": (jnp.sum(per_token * still), still.sum()), "ahead": (jnp.sum(per_token * far), far.sum())}
    return per_token, extra


def _token_flow_loss(head, encoded, part: StreamSlice, draws, config: ContinuousConfig):
    # The token before an item's first patch is its start token, which has no loss.
    return continuous.loss_of_tokens(head, jnp.roll(encoded.hidden, 1, axis=1), part, draws, config), {}


def _masked_flow_loss(head, encoded, part: StreamSlice, draws, config: MaskedFlowConfig):
    return masked_flow.loss(head, encoded.hidden, part, draws, config), {}


def _pairs_loss(kind: str):
    def of_pairs(head, encoded, part: StreamSlice, draws, config: ContrastiveConfig):
        per_token, found = contrastive.loss(kind, head, encoded.hidden, part, *draws[config.text])
        return per_token, {"found": found}

    return of_pairs


def _nothing(head, encoded, part: StreamSlice, draws, config: Any):
    return jnp.zeros(part.loss_weight.shape), {}


def _same(part: StreamSlice, *_: Any) -> Shaped[Array, "B N ..."]:
    return part.tokens if part.values is None else part.values


def _no_draws(*_: Any) -> dict[str, jax.Array]:
    return {}


def _at_the_end(part: StreamSlice) -> dict[str, jax.Array]:
    return {} if part.time_low is None else {"time": jnp.ones_like(part.time_low)}


def _no_config(settings: ObjectivesConfig, stream: str) -> None:
    return None


def _next_token_config(settings: ObjectivesConfig, stream: str) -> NextTokenConfig:
    return settings.next_token


def _contrastive_config(settings: ObjectivesConfig, stream: str) -> ContrastiveConfig:
    return settings.contrastive


def _masked_config(settings: ObjectivesConfig, stream: str) -> MaskedConfig:
    return settings.masked


# At several scales a token's input is made of other scales' codes, and so its own code is its target.
OBJECTIVES: dict[str, Objective] = {
    "none": Objective(_no_config, _no_draws, _at_the_end, _same, _nothing),
    "next_token": Objective(_next_token_config, _no_draws, _no_draws, _same, _next_token_loss),
    "next_scale": Objective(_next_token_config, _no_draws, _no_draws, _same, _next_token_loss),
    "masked": Objective(_masked_config, masked.draw, masked.clean, masked.content, _masked_loss),
    "continuous": Objective(
        ObjectivesConfig.of_continuous, continuous.draw, continuous.clean, continuous.noised, _continuous_loss
    ),
    "token_flow": Objective(
        ObjectivesConfig.of_continuous, continuous.draw_of_tokens, _at_the_end, _same, _token_flow_loss
    ),
    "masked_flow": Objective(
        ObjectivesConfig.of_masked_flow, masked_flow.draw, masked.clean, masked_flow.content, _masked_flow_loss
    ),
    "shortcut": Objective(
        ObjectivesConfig.of_continuous,
        ahead.draw_halved,
        ahead.clean,
        continuous.noised,
        _ahead_loss,
        ahead.halves,
        ahead.fits,
    ),
    "mean_flow": Objective(
        ObjectivesConfig.of_continuous,
        ahead.draw_any,
        ahead.clean,
        continuous.noised,
        _ahead_loss,
        ahead.derivative,
        ahead.fits,
    ),
    **{
        kind: Objective(
            _contrastive_config, _no_draws, _at_the_end, _same, _pairs_loss(kind),
            beside=lambda config: (config.text,),
        )
        for kind in contrastive.LOSSES
    },
}  # fmt: skip
