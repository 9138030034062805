"""Where the steps of new episodes belong: looked up together, placed one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.growing import GrowingArray
from valuegraph.index import VectorIndex

__all__ = ["Memory", "Placing", "Visit", "groups", "newest"]

Floats = NDArray[np.float32]

_TOGETHER = 1024  # steps that are looked up in one search


class Memory(NamedTuple):
    """What one step leaves behind."""

    key: Floats
    """(K,) row of `ValueGraph.keys`."""
    text: str
    """What the step said, in words."""


class Visit(NamedTuple):
    """One episode as it is written: rows of keys, credit and what is known of its end."""

    goal: Floats
    """(d,) goal embedding, zero if there is none."""
    goal_text: str | None
    memories: Sequence[Memory]
    credit: NDArray[np.float64]
    """(T,) credit targets y."""
    outcome: float
    terminated: bool
    """False where the episode was cut off: its last node is then no end of anything."""


class Placing:
    """Keys about to be stored, each with the most similar memory: looked up together, then compared with
    those stored since. What is new goes into the index in one piece."""

    def __init__(self, index: VectorIndex, keys: Floats) -> None:
        self._index, self._keys, self._at = index, keys, 0
        self._start, self._fresh = len(index), GrowingArray(np.empty((0, keys.shape[1]), np.float32))
        self._similarity = np.full(len(keys), -np.inf, np.float32)
        self._nearest = np.full(len(keys), -1, np.int64)
        if len(index):
            found = index.search(keys, 1)
            self._similarity, self._nearest = found.similarity[:, 0], found.ids[:, 0]

    def next(self, steps: int) -> tuple[Floats, NDArray[np.float32], NDArray[np.int64]]:
        """The next keys, (steps,) similarity to the nearest node, and (steps,) that node, -1 if none."""
        rows = slice(self._at, self._at + steps)
        self._at += steps
        keys, similarity, nearest = self._keys[rows], self._similarity[rows], self._nearest[rows]
        if len(self._fresh):
            likeness = keys @ self._fresh.rows.T
            best = likeness.argmax(axis=1)
            later = np.take_along_axis(likeness, best[:, None], axis=1)[:, 0]
            nearest = np.where(later > similarity, self._start + best, nearest)
            similarity = np.maximum(similarity, later)
        return keys, similarity, nearest

    def add(self, keys: Floats) -> None:
        """Keys of new nodes."""
        self._fresh.extend(keys)

    def store(self) -> None:
        """Put the new keys into the index."""
        if fresh := len(self._fresh):
            self._index.add(self._fresh.rows, np.arange(self._start, self._start + fresh))


def groups(visits: Sequence[Visit]) -> Iterator[list[Visit]]:
    """The visits in order, by about `_TOGETHER` steps."""
    group: list[Visit] = []
    steps = 0
    for visit in visits:
        group.append(visit)
        steps += len(visit.memories)
        if steps >= _TOGETHER:
            yield group
            group, steps = [], 0
    if group:
        yield group


def newest(keys: Floats, candidates: NDArray[np.int64], same: float) -> tuple[list[int], NDArray[np.int64]]:
    """Of the candidates, those that make a node; and the place among them of each candidate's node."""
    fresh: list[int] = []
    place = np.empty(len(candidates), np.int64)
    for i, t in enumerate(candidates.tolist()):
        likeness = keys[fresh] @ keys[t] if fresh else np.zeros(0)
        if len(likeness) and likeness.max() >= same:
            place[i] = int(likeness.argmax())
            continue
        place[i] = len(fresh)
        fresh.append(t)
    return fresh, place
