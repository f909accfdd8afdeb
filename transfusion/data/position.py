"""Compares the data with that of a saved position: has it changed since the checkpoint, and if so, what?"""

from collections.abc import Mapping, Sequence

from absl import logging

from transfusion.data.records import Records
from transfusion.errors import UsageError


def check_same_batches(state: Mapping, batch_size: int, seed: int) -> None:
    """Refuses a position that was saved with another batch size or seed, with which it means nothing.

    A field that the position lacks, as those of old runs do, is taken to be the same.

    Raises:
      UsageError: naming the field.
    """
    for name, ours in (("batch_size", batch_size), ("seed", seed)):
        if (saved := state.get(name, ours)) != ours:
            raise UsageError(f"the data position was saved with {name}={saved}, not {ours}: resume with that value")


def warn_of_changes(state: Mapping, records: Records) -> bool:
    """Whether the data has changed since `state` was saved; if so, one line of the log says what has changed."""
    before = state.get("data")
    if before is None:
        return False
    found = changes(before, records.identity())
    if found:
        logging.warning(
            "the data has changed since the checkpoint was saved (%s): reading continues at the same place in the new "
            "data's order; documents of unfinished rows are left out", "; ".join(found),
        )  # fmt: skip
    return bool(found)


def changes(before: Sequence[Sequence], now: Sequence[Sequence]) -> list[str]:
    """One phrase for each difference between two `Records.identity`; none if the records come in the same order."""
    old, new = ({name: (share, found) for name, share, found in identity} for identity in (before, now))
    result = [f"data.sources.{name} is gone" for name in old if name not in new]
    result += [f"data.sources.{name} is new" for name in new if name not in old]
    others = not result  # if sources were added or removed, all shares change, which need not be said
    for name in (name for name in new if name in old):
        (share, found), (share_now, found_now) = old[name], new[name]
        count, count_now = (text.partition(",")[0] for text in (found, found_now))
        if count != count_now:
            result.append(f"data.sources.{name} has {count_now} records, before {count}")
        elif found != found_now:
            result.append(f"data.sources.{name} has {count} records as before, but other ones")
        if others and share != share_now:
            result.append(f"data.sources.{name} is {share_now:.3g} of the mixture, before {share:.3g}")
    if not result and list(old) != list(new):
        result.append(f"data.sources stand in another order: {', '.join(new)}")
    return result
