"""One thread for work in small pieces: waking a pool for each of them costs far more than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

__all__ = ["one_thread"]


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Keep BLAS and OpenMP to one thread inside; then as it was before.

    On a busy machine scoring a small memory is some thirty times faster like this. Pools are the process's
    own: where callers in several threads overlap, some may be left with one thread, which costs only time.
    """
    if not wanted:
        yield
        return
    with _pools().limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _pools() -> Any:
    """The thread pools of the libraries in use, which are looked for once, after all have been loaded."""
    import faiss  # noqa: F401
    import torch  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
