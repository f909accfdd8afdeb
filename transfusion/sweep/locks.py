"""Only one program at a time works on a member, also among several sweeps that share a store."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from absl import logging

from transfusion.running.own_files import open_own

NAME = ".sweep.lock"


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[int | None]:
    """Locks a member's folder while the context lasts.

    Gives the lock's file descriptor, or None if another program has it. Processes that inherit the descriptor hold the
    lock as well: if a sweep is killed, the training that it has left behind keeps the member until it ends.
    """
    file = open_own(folder / NAME, os.O_RDWR)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:  # a network file system without locks
            logging.warning("%s cannot be locked (%s): start no second sweep on it", folder, error.strerror)
        yield file
    finally:
        os.close(file)
