"""A write-ahead log: what `append` has returned from survives the death of the process and of the machine."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from valuegraph.durable import BINARY, Payload, sync, sync_folder, write_all
from valuegraph.wal_format import MARK_OFFSET, LogReader, Record, encode_frame, encode_log, encode_mark

_logger = logging.getLogger("valuegraph")


class WriteAheadLog:
    """The writing end of a log file, created where there is none. One at a time: hold the folder's lock.

    Opening verifies every record, drops a torn tail (with a warning and an entry in `notices`) and raises
    `LogError` for damage. Many threads may append, and share one fsync (group commit); a fork may not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notices: list[str] = []
        self._queue: deque[tuple[list[Payload], Future[range]]] = deque()
        self._idle, self._busy = threading.Condition(), False
        self._shut: weakref.finalize = weakref.finalize(self, int)
        if not self.path.exists():
            self._install([], base=0)
        self._open()

    @property
    def base(self) -> int:
        """Number of the last record that rotation has dropped: the first one kept is the next."""
        return self._base

    @property
    def last_sequence(self) -> int:
        """Number of the last acknowledged record, 0 if there never was one."""
        return self._tail[0]

    def append(self, payload: Payload) -> int:
        """Write one record and return its number; durable on return. Raises as `append_many` does."""
        return self.append_many([payload])[0]

    def append_many(self, payloads: Iterable[Payload]) -> range:
        """Write records with one fsync, all or none of them, and return their numbers; durable on return.

        Raises `OSError` (a full disk, a failed fsync): none of them is in the log, all earlier ones are, and
        it can be used again as soon as the disk can.
        """
        records = list(payloads)
        for payload in records:
            if not isinstance(payload, Payload):
                raise TypeError(f"a log record is bytes, not {type(payload).__name__}")
        if not records:
            return range(0)
        outcome: Future[range] = Future()
        self._queue.append((records, outcome))
        with self._alone(unless=outcome.done) as alone:
            if alone:
                self._commit()
        return outcome.result(timeout=0)

    def replay(self, after: int = 0) -> Iterator[Record]:
        """The acknowledged records with a number above `after`, in order."""
        last = self.last_sequence
        with open(self.path, "rb", buffering=0) as file:
            for record in LogReader(file, self.path):
                if after < record.sequence <= last:
                    yield record

    def rotate(self, through: int) -> None:
        """Drop the records up to number `through`, which a durable snapshot now contains; the others stay.

        The shorter log replaces the longer one atomically, or not at all if this raises `OSError`.
        """
        with self._alone():
            if not self._base <= through <= self.last_sequence:
                raise ValueError(
                    f"{self.path}: cannot drop records up to {through}: "
                    f"it has {self._base + 1} to {self.last_sequence}"
                )
            self._prepare()
            if through == self._base:
                return
            kept = [record.payload for record in self.replay(after=through)]
            self._attached = False
            self._install(kept, base=through)
            self._open()

    def close(self) -> None:
        """Make the commit mark durable too, and close the file; the log cannot be used afterwards."""
        with self._alone():
            if self._shut.alive and os.getpid() == self._pid:
                sync(self._fd)
            self._shut()

    def __enter__(self) -> WriteAheadLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _alone(self, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Have the file to oneself (True), or find that somebody else did what one came for (False).

        Whoever is first commits for all who wait; they hear of it, and queue again, while the next one syncs.
        """
        alone = False
        try:
            with self._idle:
                self._idle.wait_for(lambda: unless() or not self._busy)
                if not unless():
                    alone = self._busy = True
            yield alone
        finally:
            if alone:
                with self._idle:
                    self._busy = False
                    self._idle.notify_all()

    def _install(self, payloads: Sequence[Payload], base: int) -> None:
        """Put a new log with these records in place, atomically; `_open` makes it durable."""
        draft = self.path.with_name(f".{self.path.name}.staged")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
            try:
                write_all(fd, encode_log(payloads, base, secrets.randbits(32)))
                sync(fd)
            finally:
                os.close(fd)
            os.replace(draft, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise

    def _open(self) -> None:
        """Open whatever log has the name, verify it, drop what is torn, and make the rest durable."""
        with open(self.path, "rb", buffering=0) as file:
            reader = LogReader(file, self.path)
            deque(reader, maxlen=0)
        for notice in reader.notices:
            _logger.warning("%s", notice)
        self.notices += reader.notices
        fd = os.open(self.path, os.O_RDWR | BINARY)
        self._shut()
        self._fd, self._shut, self._pid = fd, weakref.finalize(self, os.close, fd), os.getpid()
        self._salt, self._base, self._tail = reader.salt, reader.base, (reader.last_sequence, reader.end)
        # Whoever wrote the last record, or gave this file its name, may have died before it was durable.
        self._rewind()
        sync_folder(self.path.parent)
        self._mark()
        self._attached = True

    def _commit(self) -> None:
        """Write all that is queued as one frame, and tell those who wait."""
        batch: list[tuple[list[Payload], Future[range]]] = []
        first = self.last_sequence + 1
        try:
            while self._queue:
                batch.append(self._queue.popleft())
            self._prepare()
            self._write([payload for records, _ in batch for payload in records])
        except BaseException as error:
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            for records, outcome in batch:
                message = f"{len(records)} records not written ({reason}); the log ends with {first - 1}"
                failure = OSError(getattr(error, "errno", None) or errno.EIO, message, str(self.path))
                failure.__cause__ = error
                outcome.set_exception(failure)
            if not isinstance(error, Exception):
                raise
            return
        self._mark()
        for records, outcome in batch:
            outcome.set_result(range(first, first + len(records)))
            first += len(records)

    def _prepare(self) -> None:
        """Refuse where writing would be lost, and finish what an earlier failure left undone."""
        if not self._shut.alive:
            raise OSError(errno.EBADF, "the log is closed")
        if os.getpid() != self._pid:
            raise OSError(errno.EPERM, f"process {self._pid} opened the log, this is its fork")
        if not self._attached:
            self._open()  # a rotation failed: take whichever of the two logs now has the name
        if os.fstat(self._fd).st_nlink == 0:
            raise OSError(errno.ENOENT, "the file was deleted or replaced")
        if self._unclean:
            self._rewind()

    def _write(self, payloads: Sequence[Payload]) -> None:
        """Make one frame durable, or leave no trace of it."""
        last, end = self._tail
        frame = encode_frame(payloads, last + 1, self._salt)
        try:
            self._unclean = True
            os.lseek(self._fd, end, os.SEEK_SET)
            write_all(self._fd, frame)
            sync(self._fd)
            self._tail = last + len(payloads), end + len(frame)
        except BaseException:
            with suppress(OSError):
                self._rewind()
            raise
        self._unclean = False

    def _rewind(self) -> None:
        """Take back whatever lies behind the last acknowledged record, for good."""
        self._unclean = True
        if os.fstat(self._fd).st_size > self._tail[1]:
            os.ftruncate(self._fd, self._tail[1])
        sync(self._fd)
        self._unclean = False

    def _mark(self) -> None:
        """Note how far the log is acknowledged."""
        with suppress(OSError):  # a mark that lags proves less, but nothing wrong
            os.lseek(self._fd, MARK_OFFSET, os.SEEK_SET)
            write_all(self._fd, encode_mark(*self._tail, self._salt))
