"""The optimizer: AdamW with warm-up and a schedule, clipping, and a moving average of the parameters.

Groups of parameters may have learning rates of their own, or be frozen. `split` takes frozen parameters out before the
update, so that they have no gradients and no moments, and `merge` puts them back untouched.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transfusion.errors import UsageError, check
from transfusion.model.names import by_path, covered, nearest_path
from transfusion.model.parameters import Params

# The most that the average may keep in an update after n others: at first it keeps less, so that it forgets its start.
EMA_WARMUPS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "none": lambda n, power: jnp.ones_like(n),
    "ratio": lambda n, power: (1 + n) / (10 + n),
    "power": lambda n, power: 1 - (1 + n) ** -power,
}


def _cosine(config: "OptimConfig", warmup: int, steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), config.final_learning_rate
    )


def _constant(config: "OptimConfig", warmup: int, steps: int) -> optax.Schedule:
    flat = optax.constant_schedule(config.learning_rate)
    if not warmup:
        return flat
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), flat], [warmup])


def _warmup_stable_decay(config: "OptimConfig", warmup: int, steps: int) -> optax.Schedule:
    falling = min(max(round(config.decay_share * steps), 1), max(steps - warmup, 1))
    fall = optax.linear_schedule(config.learning_rate, config.final_learning_rate, falling)
    begin = max(steps - falling, warmup)
    return optax.join_schedules([_constant(config, warmup, steps), fall], [begin])


# Name -> a function that makes the schedule from the config, the number of steps of warm-up, and that of all steps.
SCHEDULES: dict[str, Callable[["OptimConfig", int, int], optax.Schedule]] = {
    "cosine": _cosine,
    "constant": _constant,
    "wsd": _warmup_stable_decay,
}


@dataclasses.dataclass(frozen=True)
class LearningRateGroup:
    """Parameters with a learning rate of their own, as LMFusion (arXiv 2412.15188, section 3.2) has per modality.

    Attributes:
      pattern: a regular expression that covers whole names from the start of a path: 'trunk/blocks/image' covers all of
        that expert, such as 'trunk/blocks/image/q', and 'trunk/.*/(q|k)_norm' every norm of queries and keys.
      factor: what the learning rate is multiplied by; 0 freezes the parameters: no gradient, no moments, no decay.
    """

    pattern: str = ""
    factor: float = 0.0

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(f"optim.groups: {self.pattern!r} is no regular expression: {error}") from error
        if self.factor < 0:
            raise UsageError(f"optim.groups: the factor of {self.pattern!r} must not be negative, it is {self.factor}")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated. The defaults are those of the Transfusion paper (section 4.1), which has no average.

    Attributes:
      learning_rate, final_learning_rate: the peak, and the end of 'cosine' and 'wsd'.
      warmup: steps of linear warm-up.
      schedule: what follows the warm-up, a key of `SCHEDULES`: 'cosine' falls over all steps; 'constant' stays at the
        peak; 'wsd' (warmup, stable, decay; MiniCPM, arXiv 2404.06395, section 4.2) stays there and falls, here in a
        straight line, over the last steps. Before the fall, a run with more `steps` has the same learning rates, so it
        can be prolonged; under 'cosine' the rate jumps up.
      decay_share: the share of `steps` over which 'wsd' falls.
      b1, b2, epsilon, weight_decay: AdamW; vectors (norm scales, biases) are not decayed.
      clip: the largest global norm of the gradient; 0 turns clipping off.
      ema: decay of the average of the parameters; with 0 there is none, and samplers use the parameters.
      accumulate: into how many microbatches a batch is cut, which are computed one after the other.
      ema_warmup, ema_power: a key of `EMA_WARMUPS`, and the power of 'power' (2/3 for a million steps, 3/4 for fewer).
      ema_start: the step whose parameters the average starts from.
      offload: whether the moments stay in the host's memory between steps; each step then copies them there and back.
      groups: parameters that train slower, faster or not at all; the first group that covers a parameter decides.
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
    offload: bool = False
    groups: tuple[LearningRateGroup, ...] = ()
    schedule: str = "cosine"
    decay_share: float = 0.1

    def __post_init__(self):
        check("optim.schedule", self.schedule, SCHEDULES)
        if self.learning_rate <= 0 or self.accumulate < 1 or not 0 <= self.ema < 1:
            raise UsageError("optim: learning_rate must be positive, accumulate at least 1, ema in [0, 1)")
        check("optim.ema_warmup", self.ema_warmup, EMA_WARMUPS)
        if self.ema_power <= 0 or self.ema_start < 0:
            raise UsageError("optim: ema_power must be positive, ema_start not negative")


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate by the number of updates made, of `steps` in all: a warm-up from 0, then `config.schedule`."""
    warmup = min(config.warmup, max(steps - 1, 0))
    return SCHEDULES[config.schedule](config, warmup, steps)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW, which decays matrices only. It is for the parameters that are trained, see `split`."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adamw = optax.adamw(
        learning_rate(config, steps), config.b1, config.b2, config.epsilon,
        weight_decay=config.weight_decay, mask=_matrices,
    )  # fmt: skip
    if not config.groups:
        return optax.chain(clip, adamw)
    return optax.chain(clip, adamw, optax.stateless(lambda updates, _: _scaled(updates, config.groups)))


def _matrices(params: Any) -> Any:
    """True for the leaves that are decayed: all but norm scales and biases."""

    def matrix(path, _):
        return not any(str(key.key).endswith(("norm", "bias", "scale", "mean", "variance")) for key in path)

    return jax.tree_util.tree_map_with_path(matrix, params)


def ema_decay(config: OptimConfig, step: jax.Array) -> jax.Array:
    """How much of the average the update of this step keeps: 0 up to `ema_start`, then the warm-up's, then `ema`."""
    n = jnp.maximum(jnp.asarray(step - config.ema_start, jnp.float32), 0)
    warmup = EMA_WARMUPS[config.ema_warmup](n, config.ema_power)
    return jnp.where(n > 0, jnp.minimum(config.ema, warmup), 0.0)


def average(ema: Params, params: Params, config: OptimConfig, step: jax.Array) -> Params:
    """ema <- d ema + (1 - d) params, with d = `ema_decay`; frozen parameters are as they were."""
    d = ema_decay(config, step)
    (ema, still), (params, _) = split(ema, config.groups), split(params, config.groups)
    return merge(jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params), still)


# --- groups -----------------------------------------------------------------------------------------------------------


def split(params: Params, groups: tuple[LearningRateGroup, ...]) -> tuple[Params, Params]:
    """Splits parameters, or anything that belongs to each of them, into (trained, frozen): dicts that share no leaf.

    Raises:
      UsageError: if a group covers no parameter that an earlier one leaves to it, or everything is frozen.
    """
    if not groups:
        return params, {}
    factors = _factors(by_path(params), groups)
    return _pick(params, lambda path: factors[path] != 0), _pick(params, lambda path: factors[path] == 0)


def merge(trained: Params, frozen: Params) -> Params:
    """Puts the parameters together that `split` took apart."""
    if not frozen:
        return trained
    result = dict(trained)
    for name, child in frozen.items():
        result[name] = merge(trained.get(name, {}), child) if isinstance(child, Mapping) else child
    return result


def _factors(paths: Mapping[str, Any], groups: tuple[LearningRateGroup, ...]) -> dict[str, float]:
    result: dict[str, float] = {}
    for group in groups:
        matches = [path for path in paths if covered(group.pattern, path)]
        left = [path for path in matches if path not in result]
        if not matches:
            raise UsageError(f"optim.groups: {group.pattern!r} covers no parameter{nearest_path(group.pattern, paths)}")
        if not left:
            raise UsageError(f"optim.groups: every parameter that {group.pattern!r} covers is in an earlier group")
        result |= dict.fromkeys(left, group.factor)
    result = dict.fromkeys(paths, 1.0) | result
    if not any(result.values()):
        raise UsageError("optim.groups: every parameter is frozen, there is nothing to train")
    return result


def _pick(params: Params, wanted: Callable[[str], bool], above: str = "") -> Params:
    """The leaves at wanted paths. A dict that loses all its leaves is left out."""
    result = {}
    for name, child in params.items():
        if not isinstance(child, Mapping):
            result |= {name: child} if wanted(f"{above}{name}") else {}
        elif part := _pick(child, wanted, f"{above}{name}/"):
            result[name] = part
    return result


def _scaled(updates: Params, groups: tuple[LearningRateGroup, ...]) -> Params:
    """Multiplies the updates of trained parameters by the factors of their groups."""
    factors = {
        path: next((group.factor for group in groups if covered(group.pattern, path)), 1.0) for path in by_path(updates)
    }

    def scale(path, update):
        factor = factors["/".join(str(key.key) for key in path)]
        return update if factor == 1 else factor * update

    return jax.tree_util.tree_map_with_path(scale, updates)
