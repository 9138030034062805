"""Which id a label stands for, and which label an id has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from valuegraph.growing import LabelOf

__all__ = ["Labels"]


class Labels:
    """Labels 0, 1, 2 ... of ids, none of them used twice.

    A label whose id was removed stays as a tombstone, with the id -1, until its vector is taken out.

    >>> labels = Labels(np.array([7, 3]))
    >>> labels.put(np.array([5])), labels.pop(np.array([3])), len(labels)
    (array([2]), array([1]), 2)
    >>> labels.known, labels.tombstones, labels.find(np.array([5, 3]))
    (array([ 7, -1,  5]), [1], array([ 2, -1]))
    """

    def __init__(self, ids: NDArray[np.int64]) -> None:
        """Labels 0 .. n-1 stand for these ids; -1 is a label without a vector."""
        self.next = len(ids)
        """The label that is handed out next."""
        self.ids = np.full(len(ids) + max(64, len(ids) // 8), -1, np.int64)
        """(more than next,) id by label; -1 beyond the last, where label -1, "none", points too."""
        self.ids[: len(ids)] = ids
        alive = np.flatnonzero(ids >= 0)
        self._of = LabelOf()
        self._of.put(ids[alive], alive)
        self.tombstones: list[int] = np.flatnonzero(ids < 0).tolist()

    def __len__(self) -> int:
        return len(self._of)

    @property
    def known(self) -> NDArray[np.int64]:
        """(next,) ids by label so far, in place."""
        return self.ids[: self.next]

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use."""
        return int(self.ids.nbytes) + self._of.nbytes

    def alive(self, since: int = 0) -> NDArray[np.int64]:
        """The labels that have an id, from one on."""
        return since + np.flatnonzero(self.known[since:] >= 0)

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the labels of ids, -1 where there is none."""
        return self._of.find(ids)

    def put(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) labels for new ids."""
        start, stop = self.next, self.next + len(ids)
        labels = np.arange(start, stop, dtype=np.int64)
        if stop >= len(self.ids):  # the last place stays free
            longer = np.full(stop + max(64, stop // 8), -1, np.int64)
            longer[:start] = self.ids[:start]
            self.ids = longer
        self.ids[start:stop] = ids
        self._of.put(ids, labels)
        self.next = stop
        return labels

    def pop(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leave tombstones for distinct ids; returns the labels of those that had one."""
        gone = self._of.pop(ids)
        self.ids[gone] = -1
        self.tombstones += gone.tolist()
        return gone
