"""MATLAB's `.mat` files of version 7 and older, as scipy reads them, when their structure has been found to be whole.

scipy's compiled reader trusts a file: a type that there is none of ends the process, and an array takes the memory that its header tells.
So tags and headers are walked first. Layout (MathWorks, "MAT-File Format", level 5): a header of 128 bytes, then elements, each with a tag,
its type and its size in bytes, which has 8 bytes, or 4 where the size is in the upper half of the type and the content in the other 4. Data
fill up to 8 bytes. An array is an element of type 14 that holds others: flags, dimensions, name, and its numbers, or other arrays. One of
type 15 is such an element, deflated by zlib. What scipy makes of them is arrays, structs and texts: nothing in a file is run.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torchimpt.checks import InputError
from torchimpt.unpacked import MOST_BYTES

MATRIX, COMPRESSED = 14, 15

SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
"""Bytes of a number or character of each type of data."""

CELL, STRUCT, OBJECT, CHARACTERS, SPARSE, NUMBERS, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, range(6, 16), 16, 17
"""Classes of arrays."""

DEEPEST, MOST_BLANKS = 40, 2**20
"""Arrays within arrays, and characters of a text of which none is stored: more are damage."""

_CHUNK = 2**20


class Damaged(Exception):
    """The file's structure is not whole, for this reason."""


def load_mat(path: str | os.PathLike, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The file's variables by name (those of `names`, as many as there are), structs as objects, as `scipy.io.loadmat` has them.

    Errors are scipy's, or `check_mat`'s.
    """
    from scipy.io import loadmat

    check_mat(path)
    return loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=names)


def check_mat(path: str | os.PathLike) -> None:
    """Raise where a file's structure is damaged, or where it holds more than `torchimpt.unpacked.MOST_BYTES` when it is unpacked.

    Files of other versions pass: what reads them, or tells that it does not, is no compiled code.
    """
    with Path(path).open("rb") as file:
        head = file.read(128)
        if len(head) < 128 or 0 in head[:4] or 2 in head[124:126]:
            return
        try:
            _walk(file, os.stat(path).st_size, "<" if head[126:] == b"IM" else ">")
        except (Damaged, zlib.error) as error:
            raise InputError(f"{path} is a damaged .mat file: {error}; copy or write it anew") from None


class _Tag(NamedTuple):
    kind: int
    size: int
    inline: bytes | None


class _Source:
    """Bytes that are read forward, of a file or of a stream that is deflated in it."""

    def __init__(self, read: Callable[[int], bytes], order: str) -> None:
        self._read, self._order, self.at = read, order, 0

    def take(self, count: int) -> bytes:
        """Just so many bytes, few."""
        parts, missing = [], count
        while missing and (part := self._read(missing)):
            parts.append(part)
            missing -= len(part)
        if missing:
            raise Damaged("it is cut off")
        self.at += count
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Pass over so many."""
        if count < 0 or self.at + count > MOST_BYTES:
            raise Damaged(f"its parts would take more than {MOST_BYTES / 1e9:.1f} GB" if count > 0 else "a part reaches out of its array")
        while count:
            count -= len(self.take(min(count, _CHUNK)))

    def numbers(self, content: bytes, code: str) -> tuple[int, ...]:
        """Integers of 32 bits."""
        return struct.unpack(f"{self._order}{len(content) // 4}{code}", content[: len(content) // 4 * 4])

    def tag(self) -> _Tag:
        """The next element's."""
        content = self.take(8)
        first, second = self.numbers(content, "I")
        if first >> 16:
            if first >> 16 > 4:
                raise Damaged(f"an element of type {first & 0xFFFF} has {first >> 16} bytes in 4")
            return _Tag(first & 0xFFFF, first >> 16, content[4 : 4 + (first >> 16)])
        return _Tag(first, second, None)

    def data(self, end: int, kinds: tuple[int, ...], most: int = 2**16) -> bytes:
        """The content of a short element of one of these types, which ends before `end`."""
        tag = self.tag()
        if tag.kind not in kinds:
            raise Damaged(f"an element has type {tag.kind} where {' or '.join(map(str, kinds))} belongs")
        if tag.inline is not None:
            return tag.inline
        if tag.size > min(most, end - self.at):
            raise Damaged(f"an element of {tag.size} bytes does not fit where it is")
        content = self.take(tag.size)
        self.skip(-tag.size % 8)
        return content


def _walk(file: BinaryIO, size: int, order: str) -> None:
    """Every variable of the file."""
    total, plain = 0, _Source(file.read, order)
    plain.at = file.tell()
    while plain.at < size:
        tag = plain.tag()
        end = plain.at + tag.size
        if tag.kind not in (MATRIX, COMPRESSED) or tag.inline is not None or end > size:
            raise Damaged(f"a variable has type {tag.kind} and {tag.size} bytes")
        if tag.kind == MATRIX:
            _array(plain, tag.size, 0)
        else:
            inner = _Source(_inflated(file, tag.size).read, order)
            tag = inner.tag()
            if tag.kind != MATRIX:
                raise Damaged(f"a deflated variable has type {tag.kind}")
            _array(inner, tag.size, 0)
            total += inner.at
            if total > MOST_BYTES:
                raise Damaged(f"it would take more than {MOST_BYTES / 1e9:.1f} GB when it is unpacked")
            file.seek(end)
            plain.at = end


def _inflated(file: BinaryIO, size: int) -> BinaryIO:
    """The content of a deflated stream of `size` bytes that begins here, buffered: it is unpacked in pieces, as it is read."""
    return io.BufferedReader(_Inflated(file, size), _CHUNK)


class _Inflated(io.RawIOBase):
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left, self._engine = file, size, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._engine.eof:
            packed = self._engine.unconsumed_tail
            if not packed:
                packed = self._file.read(min(_CHUNK, self._left))
                self._left -= len(packed)
                if not packed:
                    break
            if found := self._engine.decompress(packed, len(buffer)):
                buffer[: len(found)] = found
                return len(found)
        return 0


def _array(source: _Source, size: int, depth: int) -> None:
    """One array, of `size` bytes from here; none are an empty one."""
    if size == 0:
        return
    end = source.at + size
    flags = source.numbers(source.data(end, (6,)), "I")
    if len(flags) != 2 or depth > DEEPEST:
        raise Damaged("an array has no flags" if depth <= DEEPEST else f"arrays are within each other {depth} times")
    kind, pairs = flags[0] & 0xFF, bool(flags[0] & 0x0800)
    if kind == OPAQUE:
        for _ in range(3):
            source.data(end, (1,))
        _children(source, end, 1, depth)
    else:
        dimensions = source.numbers(source.data(end, (5, 6)), "i")
        if len(dimensions) < 2 or min(dimensions) < 0:
            raise Damaged(f"an array has the dimensions {dimensions[:8]}")
        source.data(end, (1, 2, 16))
        _content(source, end, kind, math.prod(dimensions), pairs, depth)
    if source.at > end:
        raise Damaged("a part reaches out of its array")
    source.skip(end - source.at)


def _content(source: _Source, end: int, kind: int, count: int, pairs: bool, depth: int) -> None:
    """What an array of a class and of `count` entries holds; `pairs` are complex numbers."""
    if kind in NUMBERS:
        for _ in range(1 + pairs):
            _stored(source, end, count)
    elif kind == CHARACTERS:
        if _stored(source, end) == 0 and count > MOST_BLANKS:
            raise Damaged(f"a text of {count} characters has none")
    elif kind == SPARSE:
        for _ in range(3 + pairs):
            _stored(source, end)
    elif kind in (STRUCT, OBJECT):
        if kind == OBJECT:
            source.data(end, (1, 2, 16))
        length = source.numbers(source.data(end, (5, 6)), "i")
        names = source.data(end, (1, 2, 16), most=2**24)
        if len(length) != 1 or length[0] < 1 or len(names) % length[0]:
            raise Damaged(f"a struct's names of {length[:8]} characters have {len(names)} together")
        _children(source, end, count * (len(names) // length[0]), depth)
    elif kind in (CELL, FUNCTION):
        _children(source, end, count if kind == CELL else 1, depth)
    else:
        raise Damaged(f"an array has class {kind}")


def _children(source: _Source, end: int, count: int, depth: int) -> None:
    """Arrays in an array."""
    if 8 * count > end - source.at:
        raise Damaged(f"{count} arrays do not fit into {end - source.at} bytes")
    for _ in range(count):
        tag = source.tag()
        if tag.kind != MATRIX or tag.inline is not None or tag.size > end - source.at:
            raise Damaged(f"an array in an array has type {tag.kind} and {tag.size} bytes")
        _array(source, tag.size, depth + 1)


def _stored(source: _Source, end: int, count: int | None = None) -> int:
    """Bytes of an array's numbers, as many as `count` where that is given."""
    tag = source.tag()
    if tag.kind not in SIZES:
        raise Damaged(f"numbers have type {tag.kind}")
    if count is not None and tag.size != count * SIZES[tag.kind]:
        raise Damaged(f"{tag.size} bytes are no {count} numbers of type {tag.kind}")
    if tag.inline is None:
        if tag.size > end - source.at:
            raise Damaged(f"numbers of {tag.size} bytes do not fit where they are")
        source.skip(tag.size + -tag.size % 8)
    return tag.size
