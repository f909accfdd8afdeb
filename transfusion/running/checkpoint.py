"""Checkpoints of (state, data position, config) that survive crashes, full disks and rotten files.

Orbax writes and commits a checkpoint. This module adds a checksum of every file, so that a changed byte is found before
training continues from wrong numbers. The checksums ("seal") of step 300 are in `.seal-300.json`, written after the
commit. A checkpoint without a seal counts as damaged: the process died before it had read its files back, and to repeat
a few steps costs less than to train on from wrong ones. Older checkpoints are deleted once a newer one is sealed.

All processes of a run must call every method but `check`; process 0 verifies, seals and moves files.

Storage that fails for a while is tried again (`transfusion.storage`). A failed save is repeated only if there is one
process: several would have to agree on that while one of them cannot continue, so there the failure ends the process.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import time
from types import TracebackType

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.running import seals
from transfusion.running.agreement import agreed, barrier, is_first
from transfusion.running.orbax_noise import silence
from transfusion.running.restore import choose_intact, counts_to, read_json_item, restore_state
from transfusion.running.seals import discard, move_aside, remove_leftovers, seal_path, write_seal
from transfusion.sharding import PyTree
from transfusion.storage import one_line


class CheckpointError(storage.StorageError):
    """A checkpoint could not be written; the earlier ones are untouched. `passing`: whether another try may work."""

    passing = False


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and how much to keep.

    Attributes:
      every: steps between two checkpoints.
      keep: number of newest checkpoints that stay on disk.
      asynchronous: write in the background while training goes on.
    """

    every: int = 500
    keep: int = 3
    asynchronous: bool = True

    def __post_init__(self):
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"checkpoint.{name} must be at least 1, not {getattr(self, name)}")


class Checkpoints:
    """The checkpoints of one run, for the process that trains it.

    Use it as a context manager; on leaving, it waits until the last save is on disk.
    """

    def __init__(self, workdir: str | os.PathLike, config: CheckpointConfig | None = None):
        self.config = config or CheckpointConfig()
        silence()
        self._workdir, self.root = workdir, seals.folder_of(workdir)
        self._saving: int | None = None
        self._sealing: concurrent.futures.Future | None = None
        self._tries, self._again = 0, None
        self._in_the_way: set[int] = set()  # damaged checkpoints that could not be moved aside
        self._undeletable: set[int] = set()
        if is_first():
            storage.attempt(f"cannot write to {self.root}", lambda: remove_leftovers(self.root))
        barrier("checkpoints_opened")
        options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=self.config.asynchronous)
        self._manager = ocp.CheckpointManager(self.root, options=options)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the error on its way out is the one the user must see

    def steps(self) -> list[int]:
        """Returns the steps on disk, ascending, damaged ones included."""
        return sorted(set(self._manager.all_steps()) - self._in_the_way)

    def due(self, step: int) -> bool:
        """Whether `save` would save at this step without `force`: the config says so, or the last save failed."""
        return step % self.config.every == 0 or (self._again is not None and time.monotonic() >= self._again)

    def save(self, step: int, state: PyTree, data_state: dict, config: dict, force=False, wait=False) -> bool:
        """Saves a checkpoint if one is due or `force` is set; returns whether it did. It never replaces a saved step.

        The arrays are copied before this returns, so the caller may donate them to the next step. With `wait` (or if
        the config says so) the checkpoint is sealed when this returns, and a save that fails is tried again.

        Raises:
          CheckpointError: if the disk is too full, the step is older than the newest checkpoint, or it fails however
            often it is tried.
          TypeError: if `data_state` or `config` is no JSON.
        """
        if not (force or self.due(step)):
            return False
        json.dumps([data_state, config])
        while True:
            try:
                saved = self._begin(step, state, data_state, config)
                if wait or (saved and not self.config.asynchronous):
                    self.wait()
                return saved
            except CheckpointError as failure:
                time.sleep(self._pause(failure))

    def _begin(self, step: int, state: PyTree, data_state: dict, config: dict) -> bool:
        self.wait()
        steps = self.steps()
        if step in steps:
            return False
        if step in self._in_the_way:
            logging.warning("checkpoint %d is not saved: a damaged one is in its place", step)
            return False
        if steps and step < steps[-1]:
            raise CheckpointError(f"cannot save step {step}: step {steps[-1]} exists already, roll back to before it")
        _check_space(self.root, step, state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state), config=ocp.args.JsonSave(config)
        )
        try:
            saved = seals.without_leftovers(self.root, lambda: self._start(step, items))
        except Exception as error:  # orbax and tensorstore errors have no common class
            raise self._failed(step, error) from None
        if not saved:
            raise CheckpointError(f"checkpoint {step} was refused by orbax; steps on disk: {steps}")
        self._saving, self._again = step, None
        return True

    def _start(self, step: int, items: ocp.args.Composite) -> bool:
        if is_first():
            seals.mark_unfinished(self.root, step)
        return self._manager.save(step, args=items, force=True)

    def _pause(self, failure: CheckpointError) -> float:
        """Returns the seconds to wait before another try, or raises `failure` if there is no other."""
        if not failure.passing or self._tries >= len(storage.PAUSES):
            raise failure
        pause, self._tries = storage.PAUSES[self._tries], self._tries + 1
        logging.warning("%s; trying again in %g s", failure, pause)
        return pause

    def check(self) -> None:
        """Seals a save that has finished in the background. Call it every step; it costs microseconds.

        After a failed save, another one is soon `due`.

        Raises:
          CheckpointError: if the save failed, and no other is tried.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            try:
                self._committed()
            except CheckpointError as failure:
                self._again = time.monotonic() + self._pause(failure)
        if self._sealing is not None and self._sealing.done():
            self._sealed()
            if jax.process_count() == 1:  # deleting is collective, and this method is not
                self._prune()

    def wait(self) -> None:
        """Blocks until the last save is committed and sealed; raises CheckpointError as `check` does."""
        self._settle()
        barrier("checkpoint_sealed")
        self._prune()

    def close(self) -> None:
        """Waits for the last save and frees the threads; raises CheckpointError as `check` does."""
        try:
            self._settle()
            if jax.process_count() == 1:  # no barrier here: other processes may have died
                self._prune()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def restore(self, abstract_state: PyTree) -> tuple[int, PyTree, dict, dict] | None:
        """Restores the newest intact checkpoint and moves damaged newer ones to `damaged-<step>`.

        Args:
          abstract_state: the state's structure with arrays or ShapeDtypeStructs; their shardings decide where the
            arrays go, whatever mesh they were saved from (no sharding: the first device).

        Returns:
          (step, state, data_state, config), or None if there is no checkpoint at all.

        Raises:
          UsageError: if there are checkpoints but none is intact, or the newest intact one does not fit
            `abstract_state` in a leaf's name, shape or dtype.
        """
        self.wait()
        known: dict[int, str] = {}
        while True:
            step, rejected = choose_intact(self.root, known)
            if step is None:
                return None
            state = restore_state(self._workdir, step, abstract_state)
            if counts_to(step, state, known):
                break
        if is_first():
            move_aside(self.root, rejected)
        barrier("damaged_moved")
        self._manager.reload()
        self._in_the_way = {other for other in self._manager.all_steps() if other > step}
        return step, state, read_json_item(self.root, step, "data"), read_json_item(self.root, step, "config")

    def rollback(self, to_step: int) -> None:
        """Deletes all checkpoints newer than `to_step`, so that these steps can be saved again.

        Raises:
          CheckpointError: if there is no checkpoint of `to_step`.
        """
        self.wait()
        if to_step not in self.steps():
            raise CheckpointError(f"cannot roll back to step {to_step}: checkpoints are at {self.steps()}")
        if is_first():
            self._delete([step for step in self.steps() if step > to_step])
        barrier("rolled_back")
        self._manager.reload()
        if self.steps()[-1] > to_step:
            raise CheckpointError(f"cannot roll back to step {to_step}: checkpoint {self.steps()[-1]} stays")

    def _settle(self) -> None:
        if self._saving is not None:
            self._committed()
        if self._sealing is not None:
            self._sealed()

    def _committed(self) -> None:
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in save
            raise self._failed(step, error) from None
        self._tries = 0
        if is_first():
            what = f"checksums of checkpoint {step} not written"
            self._sealing = self._thread.submit(storage.insist, what, lambda: write_seal(self.root, step))

    def _sealed(self) -> None:
        sealing, self._sealing = self._sealing, None
        try:
            sealing.result()
        except FileNotFoundError as error:
            logging.warning("a checkpoint was moved away before it was sealed: %s", one_line(error))
        except (OSError, UsageError) as error:
            raise CheckpointError(one_line(error)) from None

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        if is_first():
            with contextlib.suppress(OSError):  # the next start removes them
                remove_leftovers(self.root)
        failure = CheckpointError(f"checkpoint {step} not saved: {one_line(error)}; intact so far: {self.steps()}")
        failure.passing = jax.process_count() == 1 and "no space left" not in str(failure)
        return failure

    def _prune(self) -> None:
        deleted = 0
        if is_first():
            with contextlib.suppress(OSError):  # then the next call deletes them
                there = set(seals.steps_on_disk(self.root))  # orbax does not know of what was moved away
                steps = [step for step in self.steps() if step in there]
                if steps and seal_path(self.root, steps[-1]).exists():
                    deleted = self._delete(steps[: -self.config.keep])
        if agreed(deleted):
            self._manager.reload()

    def _delete(self, steps: list[int]) -> int:
        """Deletes checkpoints and returns how many; warns of one that cannot be deleted. Only process 0 calls it."""
        deleted = 0
        for step in reversed(steps):
            try:
                deleted += discard(self.root, step)
            except OSError as error:
                if step not in self._undeletable:
                    logging.warning("checkpoint %d cannot be deleted, and stays: %s", step, one_line(error))
                self._undeletable.add(step)
        return deleted


def _check_space(root: epath.Path, step: int, state: PyTree) -> None:
    if storage.is_bucket(root):  # which has no end
        return
    leaves = [x for x in jax.tree.leaves(state) if hasattr(x, "nbytes")]
    needed, free = sum(x.nbytes for x in leaves) + 2**18, float("inf")
    with contextlib.suppress(OSError):  # a folder that is away: saving says so
        free = shutil.disk_usage(root).free
    if agreed(needed > free):
        raise CheckpointError(
            f"checkpoint {step} not saved: it takes up to {needed / 2**20:,.1f} MiB and {root} has "
            f"{free / 2**20:,.1f} MiB free; earlier checkpoints are intact"
        )
