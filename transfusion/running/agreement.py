"""How the processes of a run agree: on a value, at a point, and on what they were started with.

All functions but `is_first` are collective: every process must call them, and each waits for the others.
"""

import collections
import json
import socket
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transfusion.errors import PassingError, UsageError


def is_first() -> bool:
    """Whether this is process 0, which alone writes the files of a run."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """Returns the value of process 0."""
    if jax.process_count() > 1:
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
    return value


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """Returns the JSON `value` of every process, in the order of their numbers.

    Raises:
      PassingError: if another process has ended.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    try:
        sizes = multihost_utils.process_allgather(np.int32(data.size))
        # Powers of two, because each length is compiled once.
        longest = max(1024, 1 << int(sizes.max() - 1).bit_length())
        everyone = multihost_utils.process_allgather(np.pad(data, (0, longest - data.size)))
    except jax.errors.JaxRuntimeError as error:
        raise PassingError(
            "another process has ended while this one waited for it: the last lines of its log say why"
        ) from error
    return [json.loads(row[:size].tobytes()) for row, size in zip(everyone, sizes, strict=True)]


def check_same(facts: Mapping[str, Any]) -> None:
    """Refuses to continue unless the `facts`, JSON values by name, are the same in every process.

    Raises:
      UsageError: naming the first fact that differs, and the processes that differ from most, with their hosts.
    """
    everyone = gather({"host": socket.gethostname(), "facts": dict(facts)})
    for name in dict.fromkeys(name for one in everyone for name in one["facts"]):
        values = [json.dumps(one["facts"].get(name)) for one in everyone]
        usual = collections.Counter(values).most_common(1)[0][0]  # process 0's, where none is in the majority
        odd = [i for i, value in enumerate(values) if value != usual]
        if odd:
            named = ", ".join(f"process {i} ({everyone[i]['host']})" for i in odd[:3]) + (" and more" * (len(odd) > 3))
            like = values.index(usual)
            raise UsageError(
                f"{name}: {values[odd[0]]} in {named}, but {usual} in process {like} ({everyone[like]['host']}): "
                "start all with the same config, code and data"
            )
