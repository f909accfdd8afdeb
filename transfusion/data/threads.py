"""The pipeline's threads: some read ahead, one makes batches. Their errors are raised in the caller's thread."""

import concurrent.futures
import queue
import threading
from collections.abc import Callable

from transfusion.data.packing import Bad
from transfusion.sequence.rows import Expanded


class ReadAhead:
    """Calls `example` in threads, for the indices that a lane will ask for next: they lie `stride` apart."""

    def __init__(self, example: Callable[[int], Expanded | Bad], threads: int, ahead: int, stride: int):
        self._example, self._ahead, self._stride = example, ahead, stride
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "transfusion-read")
        self._pending: dict[int, concurrent.futures.Future] = {}

    def __call__(self, index: int) -> Expanded | Bad:
        for later in range(index, index + (self._ahead + 1) * self._stride, self._stride):
            if later not in self._pending:
                self._pending[later] = self._pool.submit(self._example, later)
        return self._pending.pop(index).result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Worker:
    """Calls `make` again and again in a thread, and keeps at most `ahead` results ready."""

    def __init__(self, make: Callable[[], tuple], ahead: int):
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), name="transfusion-data", daemon=True)
        self._thread.start()

    def get(self) -> tuple:
        result, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))  # the next call fails in the same way
            raise error
        return result

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self, make: Callable[[], tuple]) -> None:
        while not self._stop.is_set():
            try:
                result = (make(), None)
            except BaseException as error:  # `get` raises it in the caller's thread
                result = (None, error)
            self._put(result)
            if result[1] is not None:
                return

    def _put(self, result: tuple) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(result, timeout=0.1)
            except queue.Full:
                continue
