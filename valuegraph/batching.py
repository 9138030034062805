"""Micro-batches: what arrives while one batch is worked on becomes the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Batcher", "QueueClosed", "QueueFull"]

Item = TypeVar("Item")


class QueueFull(Exception):
    """The queue holds all it may; try again later."""


class QueueClosed(Exception):
    """Nothing is taken in any more."""


class _Group(NamedTuple):
    items: Sequence[Any]
    result: asyncio.Future[Any]


@dataclass(eq=False)
class Batcher(Generic[Item]):
    """Gathers groups of items, works on several groups at once, and gives each group its own result.

    An idle batcher starts at once; there is no time to wait for company. To be used from one event loop.
    """

    work: Callable[[list[Sequence[Item]]], list[Any]]
    """Several groups in, one result a group out: a value, or the exception that its submitter gets."""
    executor: Executor
    """Where it runs, so that the event loop goes on receiving."""
    batch: int
    """Items worked on at once; a larger group is worked on by itself."""
    queue: int
    """Items that may wait."""
    waiting: int = 0
    """Items that wait now."""
    _groups: deque[_Group] = field(default_factory=deque)
    _running: asyncio.Task[None] | None = None
    _closed: bool = False

    def submit(self, items: Sequence[Item]) -> asyncio.Future[Any]:
        """Queue a group; await its result. Raises `QueueFull` or `QueueClosed` at once, taking nothing in."""
        if self._closed:
            raise QueueClosed
        if self.waiting + len(items) > self.queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        group = _Group(items, loop.create_future())
        self._groups.append(group)
        self.waiting += len(items)
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._drain())
        return group.result

    def withdraw(self, result: asyncio.Future[Any]) -> bool:
        """Take back a group by its future; False, and nothing happens, once work on it has begun."""
        for i, group in enumerate(self._groups):
            if group.result is result:
                del self._groups[i]
                self.waiting -= len(group.items)
                result.cancel()
                return True
        return False

    async def close(self) -> None:
        """Take nothing in any more, and finish what is queued."""
        self._closed = True
        if self._running is not None:
            await self._running

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._groups:
            groups = self._take()
            try:
                results = await loop.run_in_executor(self.executor, self.work, [g.items for g in groups])
            except Exception as error:  # a fault in the work itself: everybody learns of it, and work goes on
                results = [error] * len(groups)
            for group, result in zip(groups, results, strict=True):
                if group.result.done():  # the submitter has gone
                    continue
                if isinstance(result, BaseException):
                    group.result.set_exception(result)
                else:
                    group.result.set_result(result)

    def _take(self) -> list[_Group]:
        taken = [self._groups.popleft()]
        count = len(taken[0].items)
        while self._groups and count + len(self._groups[0].items) <= self.batch:
            taken.append(self._groups.popleft())
            count += len(taken[-1].items)
        self.waiting -= count
        return taken
