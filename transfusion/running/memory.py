"""How much memory of the devices a run uses."""

import jax


def device_memory() -> dict[str, int]:
    """The most bytes in use on one device of this process, now and at the worst moment since it began.

    Returns:
      device_memory_bytes and device_memory_peak_bytes; nothing where the devices do not tell, as CPUs do not.
    """
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"device_memory_bytes": "bytes_in_use", "device_memory_peak_bytes": "peak_bytes_in_use"}
    known = {ours: [int(stats[theirs]) for stats in found if theirs in stats] for ours, theirs in names.items()}
    return {name: max(values) for name, values in known.items() if values}
