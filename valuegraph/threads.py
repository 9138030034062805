"""One thread for work in small pieces: waking a pool for each of them costs far more than it saves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

__all__ = ["one_thread", "several_threads", "side_by_side"]

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Keep BLAS and OpenMP to one thread inside; then as it was before.

    On a busy machine scoring a small memory is some thirty times faster like this. Pools are the process's
    own: where callers in several threads overlap, some may be left with one thread, which costs only time.
    """
    if not wanted:
        yield
        return
    with _pools(len(sys.modules)).limit(limits=1):
        yield


def several_threads() -> bool:
    """Whether the caller may use more than one."""
    import torch

    return torch.get_num_threads() > 1


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """The work on each part, on a thread of its own that starts no others: parts never wait for each other,
    as the pieces of one multiplication do, at any price on a busy machine."""

    def alone(part: Part) -> Result:
        with one_thread():
            return work(part)

    if len(parts) == 1:
        return [alone(parts[0])]
    with one_thread(), ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(alone, parts))


@lru_cache(maxsize=1)
def _pools(modules: int) -> Any:
    """The thread pools of the libraries in use; looked for anew once more modules have been loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
