"""Works through members, several at a time, and those first that others need."""

import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from transfusion.sweep.members import Member
from transfusion.sweep.pins import Slot
from transfusion.sweep.process import Busy, Launch, Running, Stopped, found_row, run_member

PATIENCE = 5.0  # seconds before a member that another program works on is tried again

Row = dict[str, Any]


class Queue:
    """The members that wait, and the rows of those that have ended. A thread for each slot takes from it.

    Args:
      report: is called with each row as it comes, one at a time.
    """

    def __init__(self, members: Sequence[Member], judges: str, report: Callable[[Row], None]):
        self.waiting, self.judges, self.report = list(members), judges, report
        self.rows: dict[str, Row] = {}
        self.running, self.changed, self.failure = Running(), threading.Condition(), None
        self.later: dict[str, float] = {}  # members that another program worked on, and when to look again

    def work(self, slot: Slot) -> None:
        """Runs members in this slot until none is left; the body of a thread."""
        try:
            slot.settle()
            launch = Launch(slot.environment, self.judges, self.running)
            while (member := self._next()) is not None:
                self._run(member, launch)
        except Stopped:
            pass
        except BaseException as error:  # is raised again in the main thread
            with self.changed:
                self.failure = self.failure or error
            self.running.stop()
        finally:
            with self.changed:
                self.changed.notify_all()

    def _next(self) -> Member | None:
        """The first waiting member whose needs are met; waits for one. None if none is left."""
        with self.changed:
            while self.waiting and not self.running.stopped:
                for member in self.waiting:
                    due = self.later.get(member.name, 0.0) <= time.monotonic()
                    if due and all(name in self.rows for name in member.needs):
                        self.waiting.remove(member)
                        return member
                self.changed.wait(PATIENCE)
            return None

    def _run(self, member: Member, launch: Launch) -> None:
        failed = [name for name in member.needs if self.rows[name]["error"]]
        try:
            if failed:
                row = found_row(member) | {"error": f"it begins with {failed[0]!r}, which has failed"}
            else:
                row = run_member(member, launch)
        except Busy as error:
            with self.changed:
                if member.name not in self.later:
                    logging.info("%s; it is waited for", error)
                self.later[member.name] = time.monotonic() + PATIENCE
                self.waiting.append(member)
            return
        with self.changed:
            self.rows[member.name] = row
            if row["error"]:
                logging.error("%s failed: %s", member.name, row["error"])
            self.report(row)
            self.changed.notify_all()


def run_all(
    members: Sequence[Member],
    slots: Sequence[Slot],
    judges: str | pathlib.Path = "",
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Runs members, one in each slot at a time; returns their rows in their order.

    An interruption (KeyboardInterrupt) lets the running members save first. The same call continues them.
    """
    queue = Queue(members, str(judges), report)
    threads = [threading.Thread(target=queue.work, args=(slot,), daemon=True) for slot in slots[: len(members)]]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # so that a signal is noticed
    except BaseException:
        queue.running.stop()
        for thread in threads:
            thread.join()
        raise
    if queue.failure is not None:
        raise queue.failure
    return [queue.rows[member.name] for member in members]
