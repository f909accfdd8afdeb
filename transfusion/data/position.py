"""Whether the data is what it was when a checkpoint was saved, and if not, what has changed."""

from collections.abc import Mapping, Sequence

from absl import logging

from transfusion.data.records import Records
from transfusion.errors import UsageError


def check_same_batches(state: Mapping, batch_size: int, seed: int) -> None:
    """Refuses a position that means nothing with this batch size or seed.

    Raises:
      UsageError: naming the field. A position that was saved without one is taken as of the same.
    """
    for name, ours in (("batch_size", batch_size), ("seed", seed)):
        if (saved := state.get(name, ours)) != ours:
            raise UsageError(f"the data position was saved with {name}={saved}, not {ours}: resume with that value")


def warn_of_changes(state: Mapping, records: Records) -> bool:
    """Whether the data is another than that of the `state`; if so, one line of the log says what has changed."""
    before = state.get("data")
    if before is None:
        return False
    found = changes(before, records.identity())
    if found:
        logging.warning(
            "the data is not what it was when the checkpoint was saved (%s): its order is that of the new data, from "
            "the place where the checkpoint stood; documents of unfinished rows are left out", "; ".join(found),
        )  # fmt: skip
    return bool(found)


def changes(before: Sequence[Sequence], now: Sequence[Sequence]) -> list[str]:
    """What differs between two `Records.identity`, one phrase each; none if the records come in the same order."""
    old, new = ({name: (share, found) for name, share, found in identity} for identity in (before, now))
    result = [f"data.sources.{name} is gone" for name in old if name not in new]
    result += [f"data.sources.{name} is new" for name in new if name not in old]
    others = not result  # with other sources all shares are others, which need not be said
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
