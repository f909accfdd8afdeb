"""The source of kind 'scenes': records that are made as they are read. There are no files."""

from transfusion.data.config import Record, SourceConfig
from transfusion.data.scenes import tasks
from transfusion.errors import UsageError, check

ENDLESS, HELD = 2**30, 1000  # records of 'train', and of every other split


class ScenesSource:
    """Record `i` of a task and a split is the same on every machine, and in every version of Python.

    The split 'train[:1000]' has the first 1000 records of 'train' only. They can be kept with their latents and tokens
    (`DataConfig.cache`), where making those takes longer than a step.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        name, _, self._kind = config.name.partition("/")
        check("data.sources: name of scenes", name, tasks.TASKS)
        self._name, self._task = name, tasks.TASKS[name]
        if self._kind:
            check(f"data.sources: kind of {name}", self._kind, self._task.kinds)
        split, _, most = config.split.partition("[:")
        check(f"data.sources: split of {name}", split, self._task.splits)
        self._count = ENDLESS if split == "train" else HELD
        if most:
            self._count = _count(config.split, most, self._count)
        if config.hold_out or config.path:
            raise UsageError(
                "data.sources: scenes have no files and nothing to hold out: remove path and hold_out, and set split "
                f"to one of {', '.join(self._task.splits)}"
            )
        self._split, self._pixels = split, config.resolution or self._task.pixels
        if self._pixels < 16:
            raise UsageError(f"data.sources: scenes need a resolution of at least 16, not {self._pixels}")

    def __len__(self) -> int:
        return self._count

    def drawn(self, index: int) -> tasks.Drawn:
        """What record `index` says and shows."""
        return tasks.draw(self._name, self._split, index, self._kind)

    def __getitem__(self, index: int) -> Record:
        return {"id": f"{self._name}/{self._split}#{index}"} | self._task.record(self.drawn(index), self._pixels)


def _count(split: str, most: str, known: int) -> int:
    """N of a split 'train[:N]'."""
    count = most.removesuffix("]")
    if not (most.endswith("]") and count.isdecimal() and 0 < int(count) <= known):
        raise UsageError(f"data.sources: split {split!r} of scenes: write 'train[:N]', N from 1 to {known}")
    return int(count)
