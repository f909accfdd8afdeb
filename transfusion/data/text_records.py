"""Cuts long texts into records: at a blank line if one is near, else at a line end or a space, never in a character."""

from collections.abc import Iterator


def spans(data, limit: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) byte offsets that cover the UTF-8 `data` from `start` in order, each at most `limit` bytes.

    `data` is bytes or an mmap: only the neighbourhood of a cut is looked at.
    """
    size = len(data)
    while start < size:
        stop = start + limit
        if stop >= size:
            yield start, size
            return
        stop = _cut(data, start, stop)
        yield start, stop
        start = stop


def _cut(data, start: int, stop: int) -> int:
    # The first half is not cut: a heading before a long paragraph should not become a record of its own.
    for mark in (b"\n\n", b"\n", b" "):
        at = data.rfind(mark, start + (stop - start) // 2, stop)
        if at >= 0:
            return at + len(mark)
    cut = stop
    while cut > start + 1 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut if data[cut] & 0xC0 != 0x80 else stop
