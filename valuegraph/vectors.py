"""What every vector index promises, and the exact one that all others are compared with.

Similarity is the inner product: higher is nearer, and for unit vectors it is the cosine.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ExactIndex", "SearchResult", "VectorIndex", "measure_recall", "perturbed", "sampled_recall"]

_MAGIC = b"valuegraph-index"
_VERSION = 1
_BLOCK = 4_096  # vectors that are compared at once


class SearchResult(NamedTuple):
    """The k nearest vectors of each of n queries."""

    similarity: NDArray[np.float32]
    """(n, k) inner product, descending; -inf where the index holds fewer than k vectors."""
    ids: NDArray[np.int64]
    """(n, k) ids of these vectors; -1 where the index holds fewer than k."""


def split_result(found: SearchResult, queries: int) -> tuple[SearchResult, SearchResult]:
    """What the first so many queries found, and the others."""
    similarity, ids = found
    return SearchResult(similarity[:queries], ids[:queries]), SearchResult(
        similarity[queries:], ids[queries:]
    )


class VectorIndex(Protocol):
    """Vectors under ids of the caller's choice. Safe to search while another thread adds or removes: each
    search sees the index before or after a whole batch. Bad arguments raise ValueError and change nothing.
    """

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    @property
    def tier(self) -> str:
        """Name of the way vectors are kept."""

    def __len__(self) -> int:
        """Number of vectors."""

    def add(self, vectors: ArrayLike, ids: ArrayLike) -> None:
        """Add (n, dim) finite vectors under (n,) new ids, at least 0."""

    def remove(self, ids: ArrayLike) -> int:
        """Remove the vectors with these ids; returns how many there were. Their ids may be used again."""

    def search(self, queries: ArrayLike, k: int) -> SearchResult:
        """The k vectors nearest to each of (n, dim) queries; (dim,) is one query."""

    def ids(self) -> NDArray[np.int64]:
        """(n,) the ids of all vectors, in order of insertion."""

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """(n, dim) the vectors with these ids, as precisely as the tier keeps them."""

    def to_bytes(self) -> bytes:
        """The whole index; `index_from_bytes` is the inverse. Checksums are the caller's."""


class ExactIndex:
    """The oracle: all vectors in one array, every search a full product and a stable sort.

    Each change publishes new arrays, so that a search works on one state from beginning to end.
    """

    tier = "exact"

    def __init__(self, dim: int) -> None:
        self.dim = check_dim(dim)
        self._state = (np.empty((0, dim), np.float32), np.empty(0, np.int64))
        self._write = threading.Lock()

    def __len__(self) -> int:
        return len(self._state[1])

    def add(self, vectors: ArrayLike, ids: ArrayLike) -> None:
        """See `VectorIndex.add`."""
        new, labels = check_batch(vectors, ids, self.dim)
        with self._write:
            kept, known = self._state
            check_new(labels[np.isin(labels, known)])
            self._state = np.concatenate([kept, new]), np.concatenate([known, labels])

    def remove(self, ids: ArrayLike) -> int:
        """See `VectorIndex.remove`."""
        with self._write:
            vectors, known = self._state
            stays = ~np.isin(known, check_ids(ids))
            self._state = vectors[stays], known[stays]
            return int(len(known) - stays.sum())

    def search(self, queries: ArrayLike, k: int) -> SearchResult:
        """See `VectorIndex.search`."""
        wanted, k = check_queries(queries, self.dim), check_k(k)
        vectors, known = self._state
        similarity = np.full((len(wanted), k), -np.inf, np.float32)
        ids = np.full((len(wanted), k), -1, np.int64)
        for row, query in enumerate(wanted):
            product = vectors @ query
            nearest = np.argsort(-product, kind="stable")[:k]
            similarity[row, : len(nearest)], ids[row, : len(nearest)] = product[nearest], known[nearest]
        return SearchResult(similarity, ids)

    def ids(self) -> NDArray[np.int64]:
        """See `VectorIndex.ids`."""
        return self._state[1].copy()

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """See `VectorIndex.reconstruct`."""
        wanted = check_ids(ids)
        vectors, known = self._state
        check_known(wanted[~np.isin(wanted, known)])
        order = np.argsort(known)
        return vectors[order[np.searchsorted(known, wanted, sorter=order)]]

    def to_bytes(self) -> bytes:
        """See `VectorIndex.to_bytes`."""
        vectors, known = self._state
        return pack({"tier": self.tier, "dim": self.dim}, known, vectors.tobytes())

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> ExactIndex:
        """The inverse of `to_bytes`; raises ValueError where the data is no such index."""
        header, known, body = unpack(data)
        index = cls(header["dim"])
        if len(body) != 4 * len(known) * index.dim:
            raise ValueError(f"vector index: {len(known)} ids, but {len(body)} bytes of vectors")
        index._state = (np.frombuffer(body, np.float32).reshape(len(known), index.dim).copy(), known)
        return index


def measure_recall(
    index: VectorIndex, queries: ArrayLike, k: int = 16, *, oracle: VectorIndex | None = None
) -> float:
    """Share of the k nearest vectors that the index finds, in [0, 1]; one as near as the k-th counts (ties).

    Args:
      index: what is measured.
      queries: (n, dim), like those that will be asked.
      k: neighbours wanted; with fewer vectors, all of them.
      oracle: an exact index of the original vectors; by default what the index itself keeps is searched
        exactly, which measures the search and leaves out what the tier rounds away.
    """
    wanted, total = check_queries(queries, index.dim), len(index)
    k = min(check_k(k), total)
    if not len(wanted) or not k:
        return 1.0
    found = index.search(wanted, k).ids
    best = _best(index, wanted, k) if oracle is None else oracle.search(wanted, k).similarity
    threshold = best[:, -1:] - 1e-6
    vectors = (oracle or index).reconstruct(np.unique(found[found >= 0]))
    place = np.searchsorted(np.unique(found[found >= 0]), found)
    exact = np.einsum("nd,nkd->nk", wanted, vectors[np.minimum(place, len(vectors) - 1)])
    return float(((found >= 0) & (exact >= threshold)).mean())


def sampled_recall(index: VectorIndex, k: int = 16, *, sample: int = 64, seed: int = 0) -> float:
    """`measure_recall` of queries at a cosine of about 0.9 to vectors of the index, drawn at random."""
    ids, rng = index.ids(), np.random.default_rng(seed)
    if not len(ids):
        return 1.0
    drawn = np.sort(rng.choice(ids, min(sample, len(ids)), replace=False))
    return measure_recall(index, perturbed(index.reconstruct(drawn), rng), k)


def perturbed(vectors: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Queries at a cosine of about 0.9 to what is stored: new, but of the same kind."""
    noise = rng.normal(size=vectors.shape)
    noise *= (
        0.5 * np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    )
    return (vectors + noise).astype(np.float32)


def _best(index: VectorIndex, queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(n, k) largest similarities to anything the index keeps, descending, by blocks of it."""
    best, ids = np.full((len(queries), k), -np.inf, np.float32), index.ids()
    for start in range(0, len(ids), _BLOCK):
        scores = queries @ index.reconstruct(ids[start : start + _BLOCK]).T
        both = np.concatenate([best, scores], axis=1)
        best = np.partition(both, both.shape[1] - k, axis=1)[:, both.shape[1] - k :]
    return np.sort(best, axis=1)[:, ::-1]


# --- checks that all indexes share -------------------------------------------------------------------------


def check_dim(dim: int) -> int:
    """A width, at least 1."""
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    return dim


def check_k(k: int) -> int:
    """A number of neighbours, at least 1."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def check_queries(queries: ArrayLike, dim: int, name: str = "queries") -> NDArray[np.float32]:
    """(n, dim) finite float32, contiguous."""
    array = np.ascontiguousarray(queries, dtype=np.float32)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"{name} must have shape (n, {dim}), got {np.shape(queries)}")
    # One sum sees any NaN or infinity without a temporary array; only then is it worth looking for the row.
    if not math.isfinite(array.sum()) and not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ValueError(f"{name} must be finite, row {row} is not")
    return array


def check_ids(ids: ArrayLike) -> NDArray[np.int64]:
    """(n,) int64, at least 0, without repetition."""
    given = np.atleast_1d(np.asarray(ids))
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise ValueError(
            f"ids must be whole numbers in one dimension, got {given.dtype} of shape {given.shape}"
        )
    array = np.ascontiguousarray(given, dtype=np.int64)
    if len(array) and array.min() < 0:
        raise ValueError(f"ids must be at least 0, got {array.min()}")
    if len(array) > 1:
        ordered = np.sort(array)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"ids must be different, {twice[0]} is given twice")
    return array


def check_batch(
    vectors: ArrayLike, ids: ArrayLike, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As many vectors as ids."""
    array, labels = check_queries(vectors, dim, "vectors"), check_ids(ids)
    if len(array) != len(labels):
        raise ValueError(f"{len(array)} vectors, but {len(labels)} ids")
    return array, labels


def check_new(taken: NDArray[np.int64] | list[int]) -> None:
    """No id that is about to be added is taken."""
    if len(taken):
        raise ValueError(f"id {taken[0]} is in the index already")


def check_known(missing: NDArray[np.int64] | list[int]) -> None:
    """Every id that is asked for exists."""
    if len(missing):
        raise ValueError(f"id {missing[0]} is not in the index")


# --- bytes -------------------------------------------------------------------------------------------------


def pack(header: dict[str, Any], ids: NDArray[np.int64], body: bytes | memoryview) -> bytes:
    """Magic, version, length of the header, the header as JSON, the ids, the body."""
    text = json.dumps({**header, "ids": len(ids)}).encode()
    return b"".join(
        [_MAGIC, struct.pack("<II", _VERSION, len(text)), text, ids.astype("<i8").tobytes(), body]
    )


def unpack(data: bytes | memoryview) -> tuple[dict[str, Any], NDArray[np.int64], memoryview]:
    """The inverse of `pack`; raises ValueError where the data is something else, or cut off."""
    view, start = memoryview(data), len(_MAGIC) + 8
    if len(view) < start or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise ValueError("vector index: these bytes are not one")
    version, length = struct.unpack("<II", view[len(_MAGIC) : start])
    if version != _VERSION:
        raise ValueError(f"vector index: format version {version}, this library reads {_VERSION}")
    try:
        header = json.loads(bytes(view[start : start + length]))
        body = start + length + 8 * header["ids"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("vector index: the header is damaged") from error
    if len(view) < body:
        raise ValueError("vector index: cut off before the end of the ids")
    ids = np.frombuffer(view[start + length : body], "<i8").astype(np.int64)
    return header, ids, view[body:]
