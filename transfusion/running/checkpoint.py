"""Checkpoints of (state, data position, config) that survive crashes, full disks and rotten files.

Orbax writes and commits a checkpoint; this module adds what it does not do: a checksum of every file, so that a changed
byte is found before training goes on from wrong numbers. The checksums ("seal") of step 300 are `.seal-300.json`,
written after the commit. A checkpoint without a seal counts as damaged: the process died before it had read its files
back, and a few steps cost less than wrong ones. Older checkpoints are deleted once a newer one is sealed.

With several processes every method except `check` is collective; process 0 verifies, seals and moves files.

Storage that fails for a while is tried again (`transfusion.storage`). A save that failed is made anew by one process
alone: several would have to agree on that while one of them cannot go on, so there it is a fault of that process.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from transfusion import storage
from transfusion.errors import UsageError, nearest
from transfusion.running import seals
from transfusion.running.orbax_noise import silence
from transfusion.running.seals import discard, move_aside, newest_intact, remove_leftovers, seal_path, write_seal
from transfusion.running.state_form import check_form
from transfusion.storage import one_line

PyTree = Any
_NONE, _ALL_DAMAGED = -1, -2


class CheckpointError(storage.StorageError):
    """A checkpoint could not be written. The earlier ones are untouched. `passing`: another try may work."""

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
    """The checkpoints of one run, for the process that trains it. Use as a context manager: leaving it waits."""

    def __init__(self, workdir: str | os.PathLike, config: CheckpointConfig | None = None):
        self.config = config or CheckpointConfig()
        silence()
        self.root = seals.folder_of(workdir)
        self._saving: int | None = None
        self._sealing: concurrent.futures.Future | None = None
        self._tries, self._again = 0, None
        self._in_the_way: set[int] = set()  # damaged checkpoints that could not be moved aside
        self._undeletable: set[int] = set()
        if _first():
            storage.attempt(f"cannot write to {self.root}", lambda: remove_leftovers(self.root))
        _barrier("checkpoints_opened")
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
        """Whether `save` would save at this step without `force`: by the config, or as the last save failed."""
        return step % self.config.every == 0 or (self._again is not None and time.monotonic() >= self._again)

    def save(self, step: int, state: PyTree, data_state: dict, config: dict, force=False, wait=False) -> bool:
        """Saves a checkpoint if one is due or `force` is set; returns whether it did (a step saved before stays).

        The arrays are copied before this returns, so the caller may donate them to the next step. With `wait` (or if
        the config says so) it is sealed when this returns, and tried again if it fails on the way.

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
        if _first():
            seals.mark_unfinished(self.root, step)
        return self._manager.save(step, args=items, force=True)

    def _pause(self, failure: CheckpointError) -> float:
        """Seconds before another try; raises `failure` if there is to be none."""
        if not failure.passing or self._tries >= len(storage.PAUSES):
            raise failure
        pause, self._tries = storage.PAUSES[self._tries], self._tries + 1
        logging.warning("%s; trying again in %g s", failure, pause)
        return pause

    def check(self) -> None:
        """Call every step (costs microseconds): seals a finished save. After a failed one, another is soon `due`.

        Raises:
          CheckpointError: if the save in the background failed, and no other is to be tried.
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
        _barrier("checkpoint_sealed")
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
            step, rejected = _choose(self.root, known)
            if step is None:
                return None
            check_form(step, _metadata(self.root, step), abstract_state)
            target = jax.tree.map(_placed, abstract_state)
            state = _read(self.root, step, "state", ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(target))
            if _is_of(step, state, known):
                break
        if _first():
            move_aside(self.root, rejected)
        _barrier("damaged_moved")
        self._manager.reload()
        self._in_the_way = {other for other in self._manager.all_steps() if other > step}
        return step, state, _read_json(self.root, step, "data"), _read_json(self.root, step, "config")

    def rollback(self, to_step: int) -> None:
        """Deletes all checkpoints newer than `to_step`, so that these steps can be saved again.

        Raises:
          CheckpointError: if there is no checkpoint of `to_step`.
        """
        self.wait()
        if to_step not in self.steps():
            raise CheckpointError(f"cannot roll back to step {to_step}: checkpoints are at {self.steps()}")
        if _first():
            self._delete([step for step in self.steps() if step > to_step])
        _barrier("rolled_back")
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
        if _first():
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
        if _first():
            with contextlib.suppress(OSError):  # the next start removes them
                remove_leftovers(self.root)
        failure = CheckpointError(f"checkpoint {step} not saved: {one_line(error)}; intact so far: {self.steps()}")
        failure.passing = jax.process_count() == 1 and "no space left" not in str(failure)
        return failure

    def _prune(self) -> None:
        deleted = 0
        if _first():
            with contextlib.suppress(OSError):  # the next time, then
                there = set(seals.steps_on_disk(self.root))  # orbax does not know of what was moved away
                steps = [step for step in self.steps() if step in there]
                if steps and seal_path(self.root, steps[-1]).exists():
                    deleted = self._delete(steps[: -self.config.keep])
        if _agreed(deleted):
            self._manager.reload()

    def _delete(self, steps: list[int]) -> int:
        """Deletes checkpoints and returns how many; one that cannot be deleted stays, with a warning. Of process 0."""
        deleted = 0
        for step in reversed(steps):
            try:
                deleted += discard(self.root, step)
            except OSError as error:
                if step not in self._undeletable:
                    logging.warning("checkpoint %d cannot be deleted, and stays: %s", step, one_line(error))
                self._undeletable.add(step)
        return deleted


def restore_params(
    workdir: str | os.PathLike, subtree: str = "ema", sharding: jax.sharding.Sharding | None = None
) -> tuple[int, PyTree, dict]:
    """Reads one part of the newest intact state, e.g. 'ema' or 'params' ('params/text' works too), changing nothing.

    Only this part is read and held in memory. Safe while another process trains in the same work directory.

    Returns:
      (step, nested dicts of arrays, config). The arrays are on `sharding`, by default whole on the first device.

    Raises:
      UsageError: if there is no intact checkpoint, or no such part in it.
    """
    root, step, node = _newest(workdir)
    path = subtree.split("/")
    for i, name in enumerate(path):
        known = node.keys() if isinstance(node, dict) else ()
        if name not in known or not jax.tree.leaves(node[name]):
            raise UsageError(f"checkpoint {step} has no {'/'.join(path[: i + 1])!r}{nearest(name, known)}")
        node = node[name]
    wanted = jax.tree.map(functools.partial(_placed, on=sharding), node)
    for name in reversed(path):
        wanted = {name: wanted}
    tree = restore_leaves(workdir, step, wanted)
    for name in path:
        tree = tree[name]
    return step, tree, _read_json(root, step, "config")


def saved_shapes(workdir: str | os.PathLike) -> tuple[int, PyTree]:
    """Returns (step, nested dicts of what the newest intact state holds); raises UsageError if there is none."""
    _, step, metadata = _newest(workdir)
    return step, metadata


def restore_leaves(workdir: str | os.PathLike, step: int, wanted: PyTree) -> PyTree:
    """Reads of a step's state the leaves of `wanted`, nested dicts of ShapeDtypeStructs with shardings."""
    restore = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True)
    return _read(seals.folder_of(workdir), step, "state", ocp.PyTreeCheckpointHandler(), restore)


def find_newest(workdir: str | os.PathLike) -> tuple[int, dict] | None:
    """(step, config) of the newest intact checkpoint, changing nothing; None if none was ever finished. Collective.

    Raises:
      UsageError: if there are checkpoints but none is intact.
    """
    root = seals.folder_of(workdir)
    if not _agreed(_first() and bool(seals.finished(root))):
        return None
    root, step, *_ = _newest(workdir)
    return step, _read_json(root, step, "config")


def restore_state(workdir: str | os.PathLike, step: int, abstract_state: PyTree) -> PyTree:
    """The whole state of an intact checkpoint, changing nothing: see `Checkpoints.restore`. Collective."""
    root = seals.folder_of(workdir)
    check_form(step, _metadata(root, step), abstract_state)
    target = jax.tree.map(_placed, abstract_state)
    return _read(root, step, "state", ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(target))


def read_config(workdir: str | os.PathLike) -> dict:
    """Returns the config stored in the newest intact checkpoint; raises UsageError if there is none."""
    root, step, _ = _newest(workdir)
    return _read_json(root, step, "config")


def _newest(workdir: str | os.PathLike) -> tuple[epath.Path, int, PyTree]:
    """(folder, newest intact step, what its state holds)."""
    silence()
    root, known = seals.folder_of(workdir), {}
    while True:
        step, _ = _choose(root, known)
        if step is None:
            raise UsageError(f"no checkpoint in {root}: train first (python -m transfusion.train --workdir {workdir})")
        held = _metadata(root, step)
        counted = isinstance(held, dict) and _is_count(held.get("step"))
        state = restore_leaves(workdir, step, {"step": _placed(held["step"])}) if counted else None
        if _is_of(step, state, known):
            return root, step, held


def _is_of(step: int, state: PyTree, known: dict[int, str]) -> bool:
    """Whether a state is that of `step`, as far as it counts its steps; if not, `known` says so."""
    count = state.get("step") if isinstance(state, dict) else getattr(state, "step", None)
    if not _is_count(count) or int(count) == step:
        return True
    known[step] = f"its state is of step {int(count)}"
    return False


def _is_count(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and leaf.shape == () and np.issubdtype(leaf.dtype, np.integer)


def _choose(root: epath.Path, known: dict[int, str]) -> tuple[int | None, list[int]]:
    """Returns (newest intact step or None if there are no checkpoints, newer damaged steps); the same everywhere.

    `known` is what is wrong with steps beside their files.
    """
    step, rejected = _NONE, {}
    if _first():
        found, rejected = newest_intact(root, known)
        step = (_ALL_DAMAGED if rejected else _NONE) if found is None else found
        for bad, reason in rejected.items() if found is not None else ():
            logging.warning("checkpoint %d is damaged (%s): falling back to %d", bad, reason, step)
    step = _agreed(step)
    if step == _ALL_DAMAGED:
        listed = ", ".join(f"{bad} ({reason})" for bad, reason in rejected.items()) or "listed by process 0"
        raise UsageError(f"no intact checkpoint in {root}: {listed}. Put back a copy, or use another workdir")
    return (None if step == _NONE else step), list(rejected)


def _placed(leaf: Any, on: jax.sharding.Sharding | None = None) -> Any:
    if not hasattr(leaf, "shape"):
        return leaf  # a Python number
    own = getattr(leaf, "sharding", None)
    sharding = on or (own if isinstance(own, jax.sharding.Sharding) else None)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or first)


def _metadata(root: epath.Path, step: int) -> PyTree:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        metadata = reader.metadata(root / str(step) / "state").item_metadata
    return getattr(metadata, "tree", metadata)


def _read(root: epath.Path, step: int, item: str, handler: Any, arguments: Any) -> Any:
    # Not through the manager: it binds one handler per item for ever, and a reader must not touch the folder.
    def read() -> Any:
        with ocp.Checkpointer(handler) as reader:
            return reader.restore(root / str(step) / item, args=arguments)

    # Restoring is collective: one process cannot try it again alone.
    return storage.attempt(f"cannot read checkpoint {step}", read) if jax.process_count() == 1 else read()


def _read_json(root: epath.Path, step: int, item: str) -> dict:
    return _read(root, step, item, ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())


def _check_space(root: epath.Path, step: int, state: PyTree) -> None:
    if storage.is_bucket(root):  # which has no end
        return
    leaves = [x for x in jax.tree.leaves(state) if hasattr(x, "nbytes")]
    needed, free = sum(x.nbytes for x in leaves) + 2**18, float("inf")
    with contextlib.suppress(OSError):  # a folder that is away: saving says so
        free = shutil.disk_usage(root).free
    if _agreed(needed > free):
        raise CheckpointError(
            f"checkpoint {step} not saved: it takes up to {needed / 2**20:,.1f} MiB and {root} has "
            f"{free / 2**20:,.1f} MiB free; earlier checkpoints are intact"
        )


def _first() -> bool:
    return jax.process_index() == 0


def _agreed(value: int) -> int:
    """Returns the value of process 0."""
    if jax.process_count() > 1:
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
    return value


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
