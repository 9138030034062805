"""The format of a write-ahead log, and how to read one that may be torn, damaged or still growing.

The file is a header, a commit mark and then frames, one after another::

    header  magic  version  salt  base              crc    written once; the first record is number base + 1
    mark    sequence  end                           crc    rewritten in place after every fsync
    frame   magic  records  first  length  body crc  crc   then the body: one size a record, then the payloads

One frame is one commit: written, fsynced, only then acknowledged, and only then followed by the next. Two
things follow. A crash can tear no frame but the last, so a bad frame with another behind it is damage. And
whatever lies before the mark's `end` was acknowledged, so a bad frame there is damage though nothing follows.
A bad frame that is neither is the torn tail of a commit nobody was told of, and is dropped with a notice.
Checksums are seeded with the salt, so a frame that lies inside somebody's payload is not taken for one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from valuegraph.durable import ModelFolderError, Payload, read_into

LOG_VERSION = 1

_MAGIC, _FRAME_MAGIC = b"VGRAPHWL", b"VGfr"
_HEADER = struct.Struct("<8sIIQI")
_MARK = struct.Struct("<QQI")
_FRAME = struct.Struct("<4sIQQII")
MARK_OFFSET = _HEADER.size
_START = _HEADER.size + _MARK.size
_CHUNK = 1 << 20


class LogError(ModelFolderError):
    """A log that is damaged or too new; the message names the file, the offset and the record."""


class Record(NamedTuple):
    """One acknowledged `append`."""

    sequence: int
    """Counts up by one from 1 over the whole life of the log, rotations included."""
    payload: bytes


class _FrameHeader(NamedTuple):
    magic: bytes
    records: int
    first: int
    length: int
    body_crc: int
    crc: int


class LogReader:
    """Iterates over the records of an open, unbuffered log file, checking all that it passes; needs no lock.

    A writer may be appending meanwhile: all that it had acknowledged when the reader was made is seen. `end`,
    `last_sequence` and `notices` are complete once the iteration is. Raises `LogError`.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.notices: list[str] = []
        raw = self._read(0, _START)
        if len(raw) < _START:
            raise LogError(f"{path}: is cut short: {len(raw)} bytes are less than the header of a log")
        magic, version, self.salt, self.base, crc = _HEADER.unpack_from(raw)
        sound = crc == zlib.crc32(raw[: _HEADER.size - 4])
        if magic == _MAGIC and version > LOG_VERSION:
            doubt = "" if sound else " (or its header, at offset 0, is damaged)"
            raise LogError(
                f"{path}: was written by a newer valuegraph (log format {version}), this one reads up to "
                f"{LOG_VERSION}{doubt}"
            )
        if magic != _MAGIC or not sound:
            raise LogError(f"{path}: is not a log, or its header, at offset 0, is damaged")
        self._marked, self._marked_end = self._read_mark()
        self.last_sequence, self.end = self.base, _START

    def __iter__(self) -> Iterator[Record]:
        self.last_sequence, self.end = self.base, _START
        while (found := self._next()) is not None:
            header, body = found
            sizes = struct.unpack_from(f"<{header.records}Q", body)
            bounds = pairwise(accumulate(sizes, initial=8 * header.records))
            for sequence, (start, stop) in enumerate(bounds, header.first):
                yield Record(sequence, bytes(body[start:stop]))
            self.last_sequence += header.records
            self.end += _FRAME.size + header.length

    def _next(self) -> tuple[_FrameHeader, memoryview] | None:
        """The frame at `end`; None at the end of the log or before a torn tail."""
        expected = self.last_sequence + 1
        where = f"{self._path}: record {expected} at offset {self.end}"
        found = self._frame()
        if isinstance(found, str) and self.end >= self._marked_end:
            if not self._frame_follows(expected):
                if left := self._size() - self.end:
                    self.notices.append(f"{where}: {found}; not acknowledged, {left} bytes dropped")
                return None
            found = self._frame()  # it was complete before the next was begun: a writer may be at work
        if isinstance(found, str):
            known = f", though record {self._marked} was acknowledged" if self.end < self._marked_end else ""
            raise LogError(f"{where} is damaged: {found}{known}")
        if found[0].first != expected:
            raise LogError(f"{where}: records are missing, the sequence goes on with {found[0].first}")
        return found

    def _frame(self) -> tuple[_FrameHeader, memoryview] | str:
        """The frame at `end`, or what is wrong with it."""
        if self.end >= self._size():
            return "the log ends before it"
        header = self._frame_header(self._read(self.end, _FRAME.size))
        if header is None:
            return "no valid record header"
        if self.end + _FRAME.size + header.length > self._size():
            return "it is cut short"
        body = self._read(self.end + _FRAME.size, header.length)
        return (header, body) if zlib.crc32(body, self.salt) == header.body_crc else "wrong checksum"

    def _frame_header(self, raw: Payload) -> _FrameHeader | None:
        if len(raw) < _FRAME.size:
            return None
        header = _FrameHeader(*_FRAME.unpack(raw))
        sound = header.magic == _FRAME_MAGIC and header.crc == zlib.crc32(raw[:-4], self.salt)
        return header if sound else None

    def _frame_follows(self, expected: int) -> bool:
        """Whether a frame of a later commit lies anywhere behind the one at `end`."""
        position = self.end + 1
        while len(chunk := bytes(self._read(position, _CHUNK))) >= _FRAME.size:
            at = chunk.find(_FRAME_MAGIC)
            while at >= 0:
                header = self._frame_header(chunk[at : at + _FRAME.size])
                if header is not None and header.first > expected:
                    return True
                at = chunk.find(_FRAME_MAGIC, at + 1)
            position += len(chunk) - _FRAME.size + 1  # a header may straddle two chunks
        return False

    def _read_mark(self) -> tuple[int, int]:
        for _ in range(3):  # a writer may be rewriting it just now
            raw = self._read(MARK_OFFSET, _MARK.size)
            sequence, end, crc = _MARK.unpack(raw)
            if crc == zlib.crc32(raw[:-4], self.salt):
                return sequence, end
        self.notices.append(
            f"{self._path}: the commit mark, at offset {MARK_OFFSET}, is damaged; no record is"
        )
        return 0, 0

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _read(self, offset: int, size: int) -> memoryview:
        """Up to `size` bytes at `offset`, fewer only at the end of the file."""
        self._file.seek(offset)
        view = memoryview(bytearray(max(0, min(size, self._size() - offset))))
        return view[: read_into(self._file, view)]


def encode_log(payloads: Sequence[Payload], base: int, salt: int) -> bytes:
    """A whole log file: the records after number `base`, marked as acknowledged."""
    frame = encode_frame(payloads, base + 1, salt) if payloads else b""
    header = _seal(_HEADER.pack(_MAGIC, LOG_VERSION, salt, base, 0))
    return header + encode_mark(base + len(payloads), _START + len(frame), salt) + frame


def encode_frame(payloads: Sequence[Payload], first: int, salt: int) -> bytes:
    """One commit: records numbered from `first`."""
    sizes = [memoryview(payload).nbytes for payload in payloads]
    table = struct.pack(f"<{len(sizes)}Q", *sizes)
    crc = zlib.crc32(table, salt)
    for payload in payloads:
        crc = zlib.crc32(payload, crc)
    header = _FRAME.pack(_FRAME_MAGIC, len(sizes), first, len(table) + sum(sizes), crc, 0)
    return b"".join([_seal(header, salt), table, *payloads])


def encode_mark(sequence: int, end: int, salt: int) -> bytes:
    """The mark that says: acknowledged up to this record, which ends at this offset."""
    return _seal(_MARK.pack(sequence, end, 0), salt)


def _seal(packed: bytes, salt: int = 0) -> bytes:
    """Fill in the checksum that a packed structure ends with."""
    return packed[:-4] + struct.pack("<I", zlib.crc32(packed[:-4], salt))
