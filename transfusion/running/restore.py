"""Reads checkpoints: finds the newest intact one, and returns all or parts of it. Nothing in the folder changes.

A published folder (`published`) holds the weights of one step in place of checkpoints, and is read in the same way.

`restore_params` and `read_config` are safe while another process trains in the same work directory. The process that
trains uses `Checkpoints.restore`, which also moves damaged checkpoints aside.
"""

import functools
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from transfusion import storage
from transfusion.errors import UsageError, nearest
from transfusion.running import seals
from transfusion.running.agreement import agreed, is_first
from transfusion.running.orbax_noise import silence
from transfusion.running.published import open_published, part_of
from transfusion.running.state_form import check_fits
from transfusion.sharding import PyTree

_NONE, _ALL_DAMAGED = -1, -2


def restore_params(
    workdir: str | os.PathLike, subtree: str = "ema", sharding: jax.sharding.Sharding | None = None
) -> tuple[int, PyTree, dict]:
    """Reads one part of the newest intact state, e.g. 'ema' or 'params' ('params/text' works too).

    Only this part is read and held in memory.

    Returns:
      (step, nested dicts of arrays, config). The arrays are on `sharding`, by default whole on the first device.

    Raises:
      UsageError: if there is no intact checkpoint, or no such part in it.
    """
    path = subtree.split("/")
    if (held := open_published(workdir)) is not None:
        names = path[1:] if path[0] in ("ema", "params") else path
        placed = jax.tree.map(functools.partial(_placed, on=sharding), held.shapes)
        return held.step, part_of(held.read(placed), names, held.folder), {}
    root, step, node = _newest(workdir)
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
    return step, tree, read_json_item(root, step, "config")


def saved_shapes(workdir: str | os.PathLike) -> tuple[int, PyTree]:
    """Returns (step, nested dicts of the shapes in the newest intact state); raises UsageError if there is none."""
    if (held := open_published(workdir)) is not None:
        return held.step, {held.part: held.shapes}
    _, step, metadata = _newest(workdir)
    return step, metadata


def restore_leaves(workdir: str | os.PathLike, step: int, wanted: PyTree) -> PyTree:
    """Reads some leaves of a step's state: those of `wanted`, nested dicts of ShapeDtypeStructs with shardings."""
    if (held := open_published(workdir)) is not None:
        return {part: held.read(tree) for part, tree in wanted.items()}
    restore = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True)
    return _read_item(seals.folder_of(workdir), step, "state", ocp.PyTreeCheckpointHandler(), restore)


def find_newest(workdir: str | os.PathLike) -> tuple[int, dict] | None:
    """(step, config) of the newest intact checkpoint; None if none was ever finished. All processes call it.

    Raises:
      UsageError: if there are checkpoints but none is intact.
    """
    root = seals.folder_of(workdir)
    if not agreed(is_first() and bool(seals.finished_steps(root))):
        if open_published(workdir) is not None:
            raise UsageError(
                f"{workdir} is a published run, which nobody trains in: give a new --workdir, and "
                f"--config.init.path={workdir} to begin with its weights"
            )
        return None
    root, step, *_ = _newest(workdir)
    return step, read_json_item(root, step, "config")


def restore_state(workdir: str | os.PathLike, step: int, abstract_state: PyTree) -> PyTree:
    """The whole state of an intact checkpoint; all processes call it.

    Args:
      abstract_state: the state's structure with arrays or ShapeDtypeStructs; their shardings decide where the arrays
        go, whatever mesh they were saved from (no sharding: the first device).

    Raises:
      UsageError: if it differs from `abstract_state` in a leaf's name, shape or dtype.
    """
    root = seals.folder_of(workdir)
    check_fits(step, _saved_form(root, step), abstract_state)
    target = jax.tree.map(_placed, abstract_state)
    return _read_item(root, step, "state", ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(target))


def read_config(workdir: str | os.PathLike) -> dict:
    """Returns the config stored in the newest intact checkpoint; raises UsageError if there is none."""
    root, step, _ = _newest(workdir)
    return read_json_item(root, step, "config")


def _newest(workdir: str | os.PathLike) -> tuple[epath.Path, int, PyTree]:
    """(folder, newest intact step, what its state holds)."""
    silence()
    root, known = seals.folder_of(workdir), {}
    while True:
        step, _ = choose_intact(root, known)
        if step is None:
            raise UsageError(f"no checkpoint in {root}: train first (python -m transfusion.train --workdir {workdir})")
        held = _saved_form(root, step)
        counted = isinstance(held, dict) and _is_count(held.get("step"))
        state = restore_leaves(workdir, step, {"step": _placed(held["step"])}) if counted else None
        if counts_to(step, state, known):
            return root, step, held


def counts_to(step: int, state: PyTree, known: dict[int, str]) -> bool:
    """Whether a state that counts its steps has counted to `step`; if not, this is added to `known`, see below."""
    count = state.get("step") if isinstance(state, dict) else getattr(state, "step", None)
    if not _is_count(count) or int(count) == step:
        return True
    known[step] = f"its state is of step {int(count)}"
    return False


def _is_count(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and leaf.shape == () and np.issubdtype(leaf.dtype, np.integer)


def choose_intact(root: epath.Path, known: dict[int, str]) -> tuple[int | None, list[int]]:
    """Chooses the newest intact checkpoint; every process gets the choice of process 0.

    Args:
      known: why steps are damaged whose files are as they were sealed.

    Returns:
      (its step, or None if there are no checkpoints; the newer damaged steps, in process 0).

    Raises:
      UsageError: if there are checkpoints but none is intact.
    """
    step, rejected = _NONE, {}
    if is_first():
        found, rejected = seals.newest_intact(root, known)
        step = (_ALL_DAMAGED if rejected else _NONE) if found is None else found
        for bad, reason in rejected.items() if found is not None else ():
            logging.warning("checkpoint %d is damaged (%s): falling back to %d", bad, reason, step)
    step = agreed(step)
    if step == _ALL_DAMAGED:
        listed = ", ".join(f"{bad} ({reason})" for bad, reason in rejected.items()) or "listed by process 0"
        raise UsageError(f"no intact checkpoint in {root}: {listed}. Put back a copy, or use another workdir")
    return (None if step == _NONE else step), list(rejected)


def _placed(leaf: Any, on: jax.sharding.Sharding | None = None) -> Any:
    """The ShapeDtypeStruct to read a leaf with: on the sharding `on`, else on its own, else on the first device."""
    if not hasattr(leaf, "shape"):
        return leaf  # a Python number
    own = getattr(leaf, "sharding", None)
    sharding = on or (own if isinstance(own, jax.sharding.Sharding) else None)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or first)


def _saved_form(root: epath.Path, step: int) -> PyTree:
    """The names, shapes and dtypes of the leaves in a saved state."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        metadata = reader.metadata(root / str(step) / "state").item_metadata
    return getattr(metadata, "tree", metadata)


def _read_item(root: epath.Path, step: int, item: str, handler: Any, arguments: Any) -> Any:
    # Not through the manager: it binds one handler per item for ever, and a reader must not touch the folder.
    def read() -> Any:
        with ocp.Checkpointer(handler) as reader:
            return reader.restore(root / str(step) / item, args=arguments)

    # Restoring is collective: one process cannot try it again alone.
    return storage.attempt(f"cannot read checkpoint {step}", read) if jax.process_count() == 1 else read()


def read_json_item(root: epath.Path, step: int, item: str) -> dict:
    return _read_item(root, step, item, ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
