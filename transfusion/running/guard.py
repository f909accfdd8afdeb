"""Guards a run against losses that are not finite.

Such an update is skipped; after several in a row the run goes back to its last checkpoint, and after several of these
rollbacks it stops. optax.apply_if_finite is not used because it applies the poisoned update after its limit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.errors import UsageError
from transfusion.sharding import PyTree


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a run goes back to a checkpoint, and when it stops.

    Attributes:
      max_consecutive: how many skipped updates in a row lead to a rollback.
      max_rollbacks: rollbacks before the run stops.
      recovery: good updates after which earlier rollbacks are forgotten.
    """

    max_consecutive: int = 5
    max_rollbacks: int = 3
    recovery: int = 1000

    def __post_init__(self):
        for name, least in (("max_consecutive", 1), ("max_rollbacks", 0), ("recovery", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"guard.{name} must be at least {least}, not {getattr(self, name)}")


def all_finite(*values: jax.Array) -> jax.Array:
    """Returns a boolean scalar: whether all entries of all arrays (e.g. loss and gradient norm) are finite."""
    return jnp.stack([jnp.all(jnp.isfinite(value)) for value in values]).all()


def select_finite(ok: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Returns `new` where `ok` (boolean scalar) holds, else `old`, leaf by leaf; safe when `new` is full of NaN."""
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def zero_skips() -> dict[str, jax.Array]:
    """Returns the counters that live in the train state: updates skipped in all, and in a row. int32 scalars."""
    return {"skipped": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)}


def count_skips(skips: dict[str, jax.Array], ok: jax.Array) -> dict[str, jax.Array]:
    """Returns the counters after one more update, skipped unless `ok` (boolean scalar)."""
    bad = jnp.logical_not(ok).astype(jnp.int32)
    return {"skipped": skips["skipped"] + bad, "in_a_row": (skips["in_a_row"] + 1) * bad}


class Guard:
    """Decides on the host, from the counters of skipped updates, when to roll back.

    A rollback restores parameters and optimizer from the last checkpoint but keeps the data position, so that the
    records which led to the bad updates are not seen again.
    """

    def __init__(self, config: GuardConfig | None = None, rollbacks: int = 0):
        self.config = config or GuardConfig()
        self.rollbacks = rollbacks
        self._last_rollback: int | None = None

    def state(self) -> dict:
        """JSON for the checkpoint, so that a run that is stopped and continued counts its rollbacks on."""
        return {"rollbacks": self.rollbacks, "last_rollback": self._last_rollback}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` returned; an empty state starts anew."""
        self.rollbacks, self._last_rollback = state.get("rollbacks", 0), state.get("last_rollback")

    def should_roll_back(self, step: int, in_a_row: int) -> bool:
        """Call with the counter `in_a_row` after `step`; it need not be every step.

        Raises:
          UsageError: if the run keeps diverging after `max_rollbacks` rollbacks.
        """
        if in_a_row < self.config.max_consecutive:
            # Only a good update forgets: the step number also grows during a series of bad ones.
            recovered = self._last_rollback is not None and step - self._last_rollback >= self.config.recovery
            if recovered and in_a_row == 0:
                self.rollbacks, self._last_rollback = 0, None
            return False
        if self.rollbacks >= self.config.max_rollbacks:
            raise UsageError(
                f"step {step}: {in_a_row} updates in a row were not finite, after {self.rollbacks} rollbacks: "
                "lower the learning rate or the gradient clipping threshold, or look at the data"
            )
        self.rollbacks += 1
        self._last_rollback = step
        return True
