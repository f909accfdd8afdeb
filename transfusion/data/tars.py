"""Reads the members of an uncompressed tar strictly: whatever is wrong in it is reported with its offset.

Python's `tarfile` ends in silence at a header that it cannot read, so that half of a damaged shard would be lost and
nobody would know. This reader knows the formats of WebDataset shards (ustar, GNU and pax) and takes no more memory than
the names need. A tar that does not end with two empty blocks is damaged.
"""

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 512
_NAME_BYTES = 2**20  # the longest extended header, which gives a name; macOS also puts attributes there
_END_BYTES = 2**20  # so many bytes behind the end are checked
_FILES = b"0\x007"
_WITHOUT_DATA = b"123456"  # links, devices, folders and pipes
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class TarFault(ValueError):
    """A tar is damaged. The message says where: 'at byte 512: the header is damaged'."""


@dataclasses.dataclass(frozen=True)
class TarMember:
    """A member of a tar. `data` is the offset of its bytes; `fault` says why they cannot be read, if they cannot."""

    name: str
    is_file: bool
    is_folder: bool
    data: int
    size: int
    fault: str = ""


def members(file: BinaryIO, length: int) -> Iterator[TarMember]:
    """Yields the members of a tar of `length` bytes in order.

    Raises:
      TarFault: at the first fault, after all members before it.
    """
    offset, extended = 0, {}
    while True:
        header = _read(file, offset, _BLOCK)
        if len(header) < _BLOCK:
            at_end = "ends here without the two empty blocks of an end" if not header else "breaks off in a header"
            raise TarFault(f"at byte {offset}: the tar {at_end}: it may have been cut")
        if not header.strip(b"\0"):
            _check_end(file, offset)
            return
        _check_sum(header, offset)
        kind, size = header[156:157], _number(header[124:136], offset)
        size = int(extended.get("size", size)) if kind in _FILES else size
        data = offset + _BLOCK
        if kind == b"S":
            data = _after_sparse_map(file, header, data)
        stored = 0 if kind in _WITHOUT_DATA else size
        if data + stored > length:
            raise TarFault(f"at byte {offset}: the member {_name(header, extended)!r} of {size} bytes is cut off")
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            extended |= _extension(_short(file, data, size, offset), kind, offset)
        else:
            yield _member(header, kind, extended, data, size)
            extended = {}
        offset = data + -(-stored // _BLOCK) * _BLOCK


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _check_end(file: BinaryIO, offset: int) -> None:
    rest = _read(file, offset, _END_BYTES)
    if len(rest) < 2 * _BLOCK:
        raise TarFault(f"at byte {offset}: the tar ends with one empty block instead of two: it may have been cut")
    if rest.strip(b"\0"):
        raise TarFault(f"at byte {offset}: the tar goes on after its end, as if several were joined: pack it again")


def _check_sum(header: bytes, offset: int) -> None:
    try:
        wanted = _octal(header[148:156])
    except ValueError:
        wanted = -1
    blank = header[:148] + b" " * 8 + header[156:]
    # Some old programs added up the bytes as signed numbers.
    if wanted != sum(blank) and wanted != sum(byte - 256 * (byte > 127) for byte in blank):
        raise TarFault(f"at byte {offset}: the header is damaged")


def _octal(field: bytes) -> int:
    text = field.split(b"\0")[0].strip()
    if not all(48 <= byte < 56 for byte in text):
        raise ValueError("no octal number")
    return int(text or b"0", 8)


def _number(field: bytes, offset: int) -> int:
    """The size in a header: octal digits, or for 8 GiB and more a byte of 128 and a binary number."""
    try:
        size = int.from_bytes(field[1:], "big") if field[0] == 128 else _octal(field)
    except ValueError:
        size = -1
    if size < 0 or field[0] == 255:
        raise TarFault(f"at byte {offset}: the header gives no size")
    return size


def _after_sparse_map(file: BinaryIO, header: bytes, data: int) -> int:
    more = header[482]
    while more:
        block = _read(file, data, _BLOCK)
        more, data = (block[504] if len(block) == _BLOCK else 0), data + _BLOCK
    return data


def _short(file: BinaryIO, data: int, size: int, offset: int) -> bytes:
    if size > _NAME_BYTES:
        raise TarFault(f"at byte {offset}: an extended header of {size} bytes, over the limit of {_NAME_BYTES}")
    return _read(file, data, size)


def _extension(data: bytes, kind: bytes, offset: int) -> dict[str, str]:
    """The fields that a GNU or pax header gives for the next member."""
    if kind in (b"L", b"K"):
        name = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
        return {"path": name} if kind == b"L" else {}
    found, at, data = {}, 0, data.rstrip(b"\0")
    while at < len(data):
        space = data.find(b" ", at, at + len(str(_NAME_BYTES)) + 1)
        length = data[at : max(space, at)]
        end = at + int(length) if length.isdigit() else at
        key, equals, value = data[space + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarFault(f"at byte {offset}: the extended header is damaged")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at = end
    size = found.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise TarFault(f"at byte {offset}: the extended header gives no size")
    return found


def _name(header: bytes, extended: dict[str, str]) -> str:
    if "path" in extended:
        return extended["path"]
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _member(header: bytes, kind: bytes, extended: dict[str, str], data: int, size: int) -> TarMember:
    name = _name(header, extended)
    sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in extended)
    name = extended.get("GNU.sparse.name", name)
    is_file = sparse or (kind in _FILES and not name.endswith("/"))
    fault = "is stored with holes: pack it without --sparse" if sparse else ""
    return TarMember(name, is_file, kind == b"5" or name.endswith("/"), data, size, fault)
