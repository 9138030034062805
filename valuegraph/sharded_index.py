"""A vector index over several machines: one FAISS shard for each Ray actor, answers merged."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.growing import LabelOf
from valuegraph.index import index_from_bytes, make_index
from valuegraph.locks import ReadWriteLock
from valuegraph.ray_workers import Workers
from valuegraph.vectors import (
    SearchResult,
    check_batch,
    check_dim,
    check_ids,
    check_k,
    check_known,
    check_new,
    check_queries,
    pack,
    unpack,
)

__all__ = ["ShardedIndex", "merge"]


class ShardedIndex:
    """A `VectorIndex` whose vectors are spread over actors by id modulo the number of shards.

    Each shard returns its k nearest and the nearest of all are kept, so with exact shards a search equals
    that of one exact index, but for the choice among equals: that goes by their ids. Only this object may
    change its shards. They live in the memory of the cluster, and `to_bytes` is how they outlive it: where
    one has died, everything raises `WorkerLostError` and the index has to be made again.

    dim: width of the vectors.
    shards: how many actors; each should have a machine, or a part of one, to itself.
    tier: of each shard, see `make_index`; "auto" suits `expected_size` vectors in all.
    num_cpus: what Ray reserves for each shard.
    """

    def __init__(
        self,
        dim: int,
        shards: int,
        *,
        tier: str = "auto",
        device: str = "cpu",
        expected_size: int = 0,
        num_cpus: float = 1.0,
    ) -> None:
        if shards < 1:
            raise ValueError(f"shards must be at least 1, got {shards}")
        self.dim = check_dim(dim)
        self._open([(dim, tier, device, -(-expected_size // shards))] * shards, num_cpus, 0)

    def _open(self, arguments: list[tuple[Any, ...]], num_cpus: float, written: int) -> None:
        shards = len(arguments)
        own = [(number, shards, *rest) for number, rest in enumerate(arguments)]
        self._workers = Workers(Shard, own, num_cpus=num_cpus)
        self._lock = ReadWriteLock()
        self._written = written

    @property
    def tier(self) -> str:
        """The tiers of the shards, by name."""
        with self._lock.read:
            return "sharded " + ", ".join(sorted(set(self._workers.all("tier"))))

    def __len__(self) -> int:
        with self._lock.read:
            return sum(self._workers.all("size"))

    def add(self, vectors: ArrayLike, ids: ArrayLike) -> None:
        """See `VectorIndex.add`."""
        new, labels = check_batch(vectors, ids, self.dim)
        with self._lock.write:
            parts = self._parts(labels)
            taken = self._workers.each("known", [(labels[part],) for part in parts])
            check_new(np.concatenate(taken))  # asked of all shards before any is changed
            order = np.arange(self._written, self._written + len(labels))
            self._workers.each("add", [(new[part], labels[part], order[part]) for part in parts])
            self._written += len(labels)

    def remove(self, ids: ArrayLike) -> int:
        """See `VectorIndex.remove`."""
        labels = check_ids(ids)
        with self._lock.write:
            return sum(self._workers.each("remove", [(labels[part],) for part in self._parts(labels)]))

    def search(self, queries: ArrayLike, k: int) -> SearchResult:
        """See `VectorIndex.search`."""
        wanted, k = check_queries(queries, self.dim), check_k(k)
        with self._lock.read:
            return merge(self._workers.all("search", wanted, k), k)

    def ids(self) -> NDArray[np.int64]:
        """See `VectorIndex.ids`."""
        with self._lock.read:
            ids, order = map(np.concatenate, zip(*self._workers.all("ids"), strict=True))
        return ids[np.argsort(order)]

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """See `VectorIndex.reconstruct`."""
        labels = check_ids(ids)
        vectors = np.empty((len(labels), self.dim), np.float32)
        with self._lock.read:
            parts = self._parts(labels)
            known = np.concatenate(self._workers.each("known", [(labels[part],) for part in parts]))
            check_known(labels[~np.isin(labels, known)])
            found = self._workers.each("reconstruct", [(labels[part],) for part in parts])
        for part, rows in zip(parts, found, strict=True):
            vectors[part] = rows
        return vectors

    def to_bytes(self) -> bytes:
        """The whole index; `ShardedIndex.from_bytes` is the inverse."""
        with self._lock.read:
            shards = self._workers.all("to_bytes")
            header = {"tier": "sharded", "dim": self.dim, "written": self._written}
        lengths = b"".join(struct.pack("<Q", len(shard)) for shard in shards)
        header["shards"] = len(shards)
        return pack(header, np.empty(0, np.int64), lengths + b"".join(shards))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, *, num_cpus: float = 1.0) -> ShardedIndex:
        """The inverse of `to_bytes`, on as many new actors; ValueError where the data is no such index."""
        header, _, body = unpack(data)
        if header.get("tier") != "sharded":
            raise ValueError("vector index: these bytes are not a sharded one")
        shards, start = header["shards"], 8 * header["shards"]
        if len(body) < start:
            raise ValueError("vector index: cut off before the lengths of the shards")
        lengths = struct.unpack(f"<{shards}Q", body[:start])
        if len(body) != start + sum(lengths):
            raise ValueError(f"vector index: {len(body) - start} bytes of shards, expected {sum(lengths)}")
        ends = start + np.cumsum(lengths)
        own = [
            (header["dim"], bytes(body[end - length : end]))
            for end, length in zip(ends.tolist(), lengths, strict=True)
        ]
        index = cls.__new__(cls)
        index.dim = header["dim"]
        index._open(own, num_cpus, header["written"])
        return index

    def close(self) -> None:
        """End the actors; the index is gone unless `to_bytes` was kept."""
        with self._lock.write:
            self._workers.close()

    def _parts(self, ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Which of the ids belong to each shard."""
        return [np.flatnonzero(ids % len(self._workers) == shard) for shard in range(len(self._workers))]


class Shard:
    """What lives in one actor: an index, and for each id its place in the order of insertion.

    Inside, ids are divided by the number of shards, so that dense ids stay dense and cost little.
    """

    def __init__(
        self,
        number: int,
        shards: int,
        dim: int,
        kept: str | bytes,
        device: str = "cpu",
        expected_size: int = 0,
    ) -> None:
        """`kept` is a tier, or what `to_bytes` gave."""
        self._number, self._shards, self._order = number, shards, LabelOf()
        if isinstance(kept, str):
            self._index = make_index(dim, tier=kept, device=device, expected_size=expected_size)
        else:
            _, order, body = unpack(kept)
            self._index = index_from_bytes(body, device=device)
            self._order.put(self._index.ids(), order)

    def tier(self) -> str:
        """Of the index."""
        return self._index.tier

    def size(self) -> int:
        """Number of vectors."""
        return len(self._index)

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the ids that are here."""
        return ids[self._order.find(ids // self._shards) >= 0]

    def add(self, vectors: NDArray[np.float32], ids: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        """New vectors with their places in the order of insertion."""
        if len(ids):
            self._index.add(vectors, ids // self._shards)
            self._order.put(ids // self._shards, order)

    def remove(self, ids: NDArray[np.int64]) -> int:
        """How many there were."""
        self._order.pop(ids // self._shards)
        return self._index.remove(ids // self._shards)

    def search(self, queries: NDArray[np.float32], k: int) -> SearchResult:
        """The k nearest here."""
        similarity, inside = self._index.search(queries, k)
        return SearchResult(similarity, np.where(inside < 0, -1, self._outside(inside)))

    def ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All ids and their places in the order of insertion."""
        inside = self._index.ids()
        return self._outside(inside), self._order.find(inside)

    def reconstruct(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors with these ids."""
        return self._index.reconstruct(ids // self._shards)

    def to_bytes(self) -> bytes:
        """The index behind the order of insertion."""
        return pack({"tier": "shard"}, self.ids()[1], self._index.to_bytes())

    def _outside(self, inside: NDArray[np.int64]) -> NDArray[np.int64]:
        return inside * self._shards + self._number


def merge(found: list[SearchResult], k: int) -> SearchResult:
    """The k best of several answers to the same queries: by similarity, equals by id.

    >>> one = SearchResult(np.array([[0.9, 0.5]], np.float32), np.array([[4, 2]]))
    >>> two = SearchResult(np.array([[0.5, -np.inf]], np.float32), np.array([[1, -1]]))
    >>> merge([one, two], 2).ids
    array([[4, 1]])
    """
    similarity = np.concatenate([each.similarity for each in found], axis=1)
    ids = np.concatenate([each.ids for each in found], axis=1)
    order = np.lexsort((ids, -similarity), axis=1)[:, :k]
    return SearchResult(np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1))
