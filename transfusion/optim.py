"""Optimizer: AdamW with warm-up and cosine decay, clipping, and an exponential moving average of the parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transfusion.errors import UsageError, nearest

# How fast the average may forget after n updates, so that it forgets its start.
EMA_WARMUPS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "none": lambda n, power: jnp.ones_like(n),
    "ratio": lambda n, power: (1 + n) / (10 + n),
    "power": lambda n, power: 1 - (1 + n) ** -power,
}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Defaults are the Transfusion paper's (section 4.1), but for the average, which it does not mention.

    Attributes:
      learning_rate, final_learning_rate: peak, and the end of the cosine.
      warmup: steps of linear warm-up.
      b1, b2, epsilon, weight_decay: AdamW; vectors (norm scales, biases) are not decayed.
      clip: global gradient norm; 0 turns clipping off.
      ema: decay of the average of the parameters; 0 keeps none (samplers then use the parameters).
      accumulate: microbatches that a batch is cut into, one after the other.
      ema_warmup, ema_power: a key of `EMA_WARMUPS`, and the power of 'power' (2/3 for a million steps, 3/4 for fewer).
      ema_start: the step whose parameters the average starts from.
    """

    learning_rate: float = 3e-4
    final_learning_rate: float = 1.5e-5
    warmup: int = 4000
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    ema_warmup: str = "ratio"
    ema_power: float = 2 / 3
    ema_start: int = 0

    def __post_init__(self):
        if self.learning_rate <= 0 or self.accumulate < 1 or not 0 <= self.ema < 1:
            raise UsageError("optim: learning_rate must be positive, accumulate at least 1, ema in [0, 1)")
        if self.ema_warmup not in EMA_WARMUPS:
            near = nearest(self.ema_warmup, EMA_WARMUPS)
            raise UsageError(f"optim.ema_warmup: {self.ema_warmup!r} is none of {', '.join(EMA_WARMUPS)}{near}")
        if self.ema_power <= 0 or self.ema_start < 0:
            raise UsageError("optim: ema_power must be positive, ema_start not negative")


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to the final learning rate at `steps`."""
    warmup = min(config.warmup, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), config.final_learning_rate
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW; matrices only are decayed."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            schedule(config, steps), config.b1, config.b2, config.epsilon,
            weight_decay=config.weight_decay, mask=_matrices,
        ),
    )  # fmt: skip


def _matrices(params: Any) -> Any:
    """True for the leaves that are decayed: all but norm scales and biases."""

    def matrix(path, _):
        return not any(str(key.key).endswith(("norm", "bias", "scale")) for key in path)

    return jax.tree_util.tree_map_with_path(matrix, params)


def ema_decay(config: OptimConfig, step: jax.Array) -> jax.Array:
    """How much of the average survives the update of this step: 0 up to `ema_start`, then the warm-up's, then `ema`."""
    n = jnp.maximum(jnp.asarray(step - config.ema_start, jnp.float32), 0)
    warmup = EMA_WARMUPS[config.ema_warmup](n, config.ema_power)
    return jnp.where(n > 0, jnp.minimum(config.ema, warmup), 0.0)


def average(ema: Any, params: Any, config: OptimConfig, step: jax.Array) -> Any:
    """ema <- d ema + (1 - d) params, with d = `ema_decay`."""
    d = ema_decay(config, step)
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
