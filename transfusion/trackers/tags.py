"""Groups the numbers of a row under names with a slash, as trackers show groups of charts."""

import re

# Group, and which names of metrics.jsonl belong to it; the first row that fits decides. `rest` is what the name is
# inside of the group, where the group says the other part: 'held_out_loss' becomes 'held_out/loss'. Viewers sort groups
# by their names, so that these begin with what people look for first.
GROUPS: tuple[tuple[str, re.Pattern], ...] = (
    ("noise_levels_held_out", re.compile(r"held_out_(?P<rest>\w+_by_time_\d+)")),
    ("held_out", re.compile(r"held_out_(?P<rest>.+)")),
    ("loss", re.compile(r"(?P<rest>\w+)_loss|loss")),
    ("memory", re.compile(r"device_memory_(?P<rest>.+)")),
    ("noise_levels", re.compile(r"\w+_by_time_\d+")),
    ("optimizer", re.compile(r"learning_rate|skipped_updates|grad_norm\w*")),
    ("rows", re.compile(r"(?P<rest>packing_\w+|bad_records)")),
    ("speed", re.compile(r"(steps|tokens)_per_second|seconds_per_step|model_flops_\w+|data_wait_share")),
    ("telemetry", re.compile(r"telemetry_(?P<rest>.+)")),
    ("train", re.compile(r".+", re.DOTALL)),
)
_WHOLE = "all"  # the name of 'loss' inside of its group


def tag(name: str) -> str:
    """The name of a number with its group: 'loss/all', 'loss/image', 'held_out/image_loss', 'speed/data_wait_share'."""
    group, found = next((group, match) for group, pattern in GROUPS if (match := pattern.fullmatch(name)))
    return f"{group}/{found.groupdict().get('rest') or (_WHOLE if name == group else name)}"
