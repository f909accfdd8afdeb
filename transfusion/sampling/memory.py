"""The memory that the decoder needs, estimated before any of it is taken."""

import os
import pathlib

import jax
import jax.numpy as jnp

from transfusion.errors import UsageError
from transfusion.learner import Learner
from transfusion.model.attention import BACKENDS, chosen
from transfusion.sampling.prompts import SHORT, bucket
from transfusion.sharding import platform

SHARE = 0.8  # the share of memory to fill; the rest is for arrays that are not counted here
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(task: Learner, rows: int, length: int, room: int, drawn: int) -> None:
    """Refuses prompts that surely do not fit the memory.

    Args:
      task: the model's learner.
      rows: number of rows that are decoded together.
      length: tokens of the longest prompt.
      room: tokens that may follow it.
      drawn: tokens of a drawing; 0: there is none.

    Raises:
      UsageError: saying what would take less.
    """
    needed, there = needed_bytes(task, rows, bucket(length, SHORT), room, drawn), memory_bytes()
    if needed > SHARE * there:
        raise UsageError(
            f"a prompt of {length:,} tokens with room for {room + drawn:,} more takes over {needed / 1e9:,.0f} GB for "
            f"{rows} sample{'s' * (rows > 1)} at a time, and this machine has {there / 1e9:,.0f} GB: give a shorter "
            "prompt, or ask for fewer samples, less text (max_tokens, think) or a smaller size"
        )


def needed_bytes(task: Learner, rows: int, length: int, room: int, drawn: int) -> int:
    """Counts the bytes that the decoder needs at least: the cache, and the scores of one layer with their weights.

    These are the scores of a drawing and, where attention is dense, of the prompt. The decoder really takes more than
    this, so nothing is refused that would fit. The arguments are those of `check_memory`.
    """
    trunks = [task.model, *(stage.trunk for stage in task.model.stages.values())]
    cache = scores = 0
    for trunk in trunks:
        per_token = 2 * trunk.layers * trunk.groups * trunk.size * jnp.dtype(trunk.dtype).itemsize
        cache += rows * (length + room) * per_token
        if not trunk.streams:  # a trunk of some streams sees fewer tokens
            pairs = max(
                drawn * (length + room + drawn), length**2 * BACKENDS[chosen(trunk.attention, platform())].quadratic
            )
            scores = max(scores, rows * trunk.heads * pairs * 4 * 2)
    return cache + scores


def memory_bytes() -> int:
    """The memory that the decoder may take: that of its device, or on a CPU that which the process may use."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _GROUP_LIMITS:
        path = pathlib.Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)
