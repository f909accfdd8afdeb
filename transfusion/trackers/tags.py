"""Groups the numbers of a row under names with a slash, as trackers show groups of charts."""

import re

# Group, and which names of metrics.jsonl belong to it; the first row that fits decides. `rest` is what the name is
# inside of the group, where the group says the other part: 'held_out_loss' becomes 'held_out/loss'.
GROUPS: tuple[tuple[str, re.Pattern], ...] = (
    ("held_out", re.compile(r"held_out_(?P<rest>.+)")),
    ("speed", re.compile(r"(steps|tokens)_per_second|seconds_per_step|model_flops_\w+|data_wait_share")),
    ("memory", re.compile(r"device_memory_(?P<rest>.+)")),
    ("data", re.compile(r"packing_\w+|bad_records")),
    ("optimizer", re.compile(r"learning_rate|skipped_updates|grad_norm\w*")),
    ("noise_levels", re.compile(r"\w+_by_time_\d+")),
    ("train", re.compile(r".+", re.DOTALL)),
)


def tag(name: str) -> str:
    """The name of a number with its group: 'train/loss', 'held_out/image_loss', 'speed/steps_per_second'."""
    group, found = next((group, match) for group, pattern in GROUPS if (match := pattern.fullmatch(name)))
    return f"{group}/{found.groupdict().get('rest') or name}"
