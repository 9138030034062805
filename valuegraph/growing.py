"""Arrays that grow at the end. Room doubles, so each row is copied a constant number of times on average."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["GrowingArray"]


class GrowingArray:
    """Rows of one shape and type in room for more.

    >>> numbers = GrowingArray([1.0, 2.0])
    >>> numbers.extend([3.0])
    >>> numbers.rows
    array([1., 2., 3.])
    """

    def __init__(self, rows: ArrayLike, dtype: DTypeLike | None = None) -> None:
        self._room: NDArray[Any] = np.array(rows, dtype=dtype)
        self._size = len(self._room)

    @property
    def rows(self) -> NDArray[Any]:
        """The rows so far, without a copy: valid until the next `extend`, writable in place."""
        return self._room[: self._size]

    def extend(self, rows: ArrayLike) -> None:
        """Put rows at the end."""
        new = np.asarray(rows)
        stop = self._size + len(new)
        if stop > len(self._room):
            longer = np.empty((max(stop, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            longer[: self._size] = self.rows
            self._room = longer
        self._room[self._size : stop] = new
        self._size = stop

    def __len__(self) -> int:
        return self._size
