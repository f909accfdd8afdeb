"""Decodes all texts that others wrote: captions files, books, and the texts inside tars.

Text is UTF-8, with or without the mark (BOM) that Windows programs put before it. UTF-16 and UTF-32 are recognised by
their mark. Anything else is refused. Bytes that cannot be decoded are never replaced by a sign for 'unknown', because a
model would learn to write that sign.
"""

import codecs
import io
import json
from collections.abc import Iterator
from typing import BinaryIO

TEXT_BYTES = 2**22  # captions, lines and cells of more than 4 MiB are refused
ADVICE = "save the file as UTF-8"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, because its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(start: bytes) -> str:
    """The encoding that the first four bytes of a text announce; UTF-8 if they announce none."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> str:
    """The text of a whole file.

    Raises:
      ValueError: if it is no text. The message is worded to follow the file's name.
    """
    encoding = encoding_of(data[:4])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(f"is not {encoding.removesuffix('-sig').upper()} text ({where}): {ADVICE}") from error
    if "\0" in text:
        raise ValueError(f"is no text, as it holds NUL bytes: {ADVICE}")
    return text


def fault(text: str) -> str | None:
    """What is wrong with a text that `lines` gave; None if nothing is."""
    if "\0" in text:
        return f"holds NUL bytes: {ADVICE}"
    if not is_unicode(text):
        return f"is not UTF-8 text: {ADVICE}"
    return None


def not_text(value: object) -> str | None:
    """What is wrong with a value that should be a text; None if it is a text or missing."""
    return None if value is None or isinstance(value, str) else f"is of type {type(value).__name__}, not text"


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded. Half a pair of surrogates, as of an emoji that was cut, cannot."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the text of each line, with its line end (LF, CR LF or CR).

    Bytes that are no UTF-8 become single surrogates, which `fault` finds, so that the other lines can be read. A line
    that is too long is cut to `TEXT_BYTES` + 1 characters.

    Raises:
      ValueError: with one line, if a file that announces UTF-16 or UTF-32 holds something else, or begins as no text.
    """
    start = file.read(4096)
    file.seek(0)
    encoding = encoding_of(start[:4])
    if encoding.startswith("utf-8") and b"\0" in start:  # UTF-16 without its mark, or no text at all
        raise ValueError(f"it is no text, as it holds NUL bytes: {ADVICE}")
    # newline='' knows all three line ends and leaves them in the text. str.splitlines would also cut at U+2028.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    text, number = io.TextIOWrapper(file, encoding, errors, newline=""), 0
    try:
        while line := text.readline(TEXT_BYTES + 1):
            number += 1
            yield number, line
            while len(line) > TEXT_BYTES and line[-1] not in "\r\n":  # the rest of a line that is too long
                line = text.readline(TEXT_BYTES + 1)
    except UnicodeError as error:
        raise ValueError(f"line {number + 1} is not {encoding.upper()} text: {ADVICE}") from error
    finally:
        if not file.closed:
            text.detach()  # the file is the caller's to close


def parse_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
      ValueError: if it is no JSON, or an object names a key twice. The message is worded to follow 'line 3'.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _TwiceError:
        raise
    except RecursionError as error:
        raise ValueError("is no JSON that can be read (nested too deeply)") from error
    except ValueError as error:
        raise ValueError("is no JSON") from error


class _TwiceError(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _TwiceError(f"names {twice!r} twice")
    return found
