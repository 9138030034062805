"""A lock for what is read far more often than it is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["ReadWriteLock"]


class ReadWriteLock:
    """Many readers or one writer; a waiting writer goes before new readers. Not reentrant.

    >>> lock = ReadWriteLock()
    >>> with lock.read, lock.read:
    ...     shared = True
    >>> with lock.write:
    ...     alone = True
    """

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._readers = 0
        self._writing = False
        self._writers_waiting = 0
        self.read = _Side(self._start_reading, self._stop_reading)
        """Context shared with other readers."""
        self.write = _Side(self._start_writing, self._stop_writing)
        """Context that excludes everybody else."""

    def _start_reading(self) -> None:
        with self._condition:
            while self._writing or self._writers_waiting:
                self._condition.wait()
            self._readers += 1

    def _stop_reading(self) -> None:
        with self._condition:
            self._readers -= 1
            if not self._readers:
                self._condition.notify_all()

    def _start_writing(self) -> None:
        with self._condition:
            self._writers_waiting += 1
            try:
                while self._writing or self._readers:
                    self._condition.wait()
                self._writing = True
            finally:
                self._writers_waiting -= 1

    def _stop_writing(self) -> None:
        with self._condition:
            self._writing = False
            self._condition.notify_all()


class _Side:
    """A class and no generator: taking the lock must not cost more than a small search."""

    __slots__ = ("_start", "_stop")

    def __init__(self, start: Callable[[], None], stop: Callable[[], None]) -> None:
        self._start, self._stop = start, stop

    def __enter__(self) -> None:
        self._start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
