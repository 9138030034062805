"""Arrays that grow at the end, and a table made of one.

Room grows by an eighth, so each row is copied some nine times on average: cheap beside what made it.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["GrowingArray", "LabelOf"]


# Ids up to so many times their number, and a few more, are an array's indices.
_SPARSE: Final = 4
_FEW: Final = 1024


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

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use, room for more included."""
        return self._room.nbytes

    def extend(self, rows: ArrayLike) -> None:
        """Put rows at the end."""
        new = np.asarray(rows)
        stop = self._size + len(new)
        if stop > len(self._room):
            room = max(stop, len(self._room) + len(self._room) // 8 + _FEW)
            longer = np.empty((room, *self._room.shape[1:]), self._room.dtype)
            longer[: self._size] = self.rows
            self._room = longer
        self._room[self._size : stop] = new
        self._size = stop

    def __len__(self) -> int:
        return self._size


class LabelOf:
    """Which label an id has: eight bytes an id while ids are dense, as those of nodes are; else a dict, which
    takes some hundred.

    >>> labels = LabelOf()
    >>> labels.put(np.array([7, 3]), np.array([0, 1]))
    >>> labels.find(np.array([3, 4, 7])), len(labels)
    (array([ 1, -1,  0]), 2)
    """

    def __init__(self) -> None:
        self._dense: GrowingArray | None = GrowingArray(np.empty(0, np.int64))
        self._sparse: dict[int, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use."""
        if self._dense is not None:
            return self._dense.nbytes
        return sys.getsizeof(self._sparse) + 2 * self._size * sys.getsizeof(1 << 16)

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the labels of ids, -1 where there is none."""
        if self._dense is None:
            return np.array([self._sparse.get(i, -1) for i in ids.tolist()], np.int64)
        known = ids < len(self._dense)
        return np.where(known, self._dense.rows[np.where(known, ids, 0)] if len(self._dense) else -1, -1)

    def put(self, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Give labels to ids, at least 0, that have none."""
        self._size += len(ids)
        if self._dense is not None and len(ids):
            missing = int(ids.max()) + 1 - len(self._dense)
            if missing + len(self._dense) > _SPARSE * self._size + _FEW:
                known = np.flatnonzero(self._dense.rows >= 0)
                pairs = known.tolist(), self._dense.rows[known].tolist()
                self._dense, self._sparse = None, dict(zip(*pairs, strict=True))
            elif missing > 0:
                self._dense.extend(np.full(missing, -1))
        if self._dense is not None:
            self._dense.rows[ids] = labels
        else:
            self._sparse.update(zip(ids.tolist(), labels.tolist(), strict=True))

    def pop(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take away the labels of distinct ids; returns those that had one."""
        labels = self.find(ids)
        known = labels >= 0
        self._size -= int(known.sum())
        if self._dense is not None:
            self._dense.rows[ids[known]] = -1
        else:
            for i in ids[known].tolist():
                del self._sparse[i]
        return labels[known]
