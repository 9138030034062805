"""A vector index on FAISS: exact while that is cheap, inverted files beyond."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.faiss_build import build, empty
from valuegraph.faiss_gpu import MAX_NEIGHBOURS, GpuCopy, Host
from valuegraph.faiss_search import (
    Found,
    flat_rows,
    half_rows,
    list_search,
    load_faiss,
    product_search,
    scan,
    wide,
    widened,
)
from valuegraph.growing import LabelOf
from valuegraph.locks import ReadWriteLock
from valuegraph.threads import one_thread, several_threads
from valuegraph.tiers import TIERS, TRAIN_FROM, device_of, tier_for
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
    split_result,
    unpack,
)

if TYPE_CHECKING:
    import torch

__all__ = ["FaissIndex"]

_MAX_TOMBSTONES = 256  # a search asks for that many neighbours more, so there may not be many
_OUTGROWN = 4.0  # an IVF is rebuilt when it holds that many times the vectors that it was made for
# From so many queries on, matrix products by blocks beat FAISS's own scan, which is made for single queries.
_VISITORS = 12  # queries per list from which lists are multiplied as a whole
_PRODUCT_FROM: Final = {"flat": 3, "flat_fp16": 16, "ivf": 8}


class FaissIndex:
    """Vectors in a FAISS index on the host, with an optional copy on a GPU.

    FAISS knows vectors by labels, which are not used twice; an array maps them to ids. A removed vector stays
    as a tombstone, a label without an id, until there are too many. An IVF tier stays flat until it can be
    trained.
    """

    def __init__(self, dim: int, tier: str = "flat", *, device: str = "cpu", seed: int = 0) -> None:
        if tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
        self.dim = check_dim(dim)
        self.device = device_of(device)
        self._tier = tier
        self._seed = seed
        self._lock = ReadWriteLock()
        self._rebuilding = threading.Lock()
        self._gpu = GpuCopy() if self.device == "cuda" else None
        self._epoch = 0
        self._start(empty(dim, "flat_fp16" if tier in TRAIN_FROM else tier), np.empty(0, np.int64))

    def _start(self, host: Any, ids: NDArray[np.int64]) -> None:
        """Labels 0 .. n-1 in `host` stand for these ids; -1 is a label without a vector."""
        self._host = host
        self._flat = not hasattr(host, "nprobe")
        self._kept_as = "flat" if hasattr(host, "get_xb") else "flat_fp16" if self._flat else "ivf"
        self._centroids: Any = None if self._flat else flat_rows(load_faiss().downcast_index(host.quantizer))
        self._built_for = host.ntotal
        self._next = len(ids)
        self._ids = np.full(len(ids) + max(64, len(ids) // 8), -1, np.int64)
        self._ids[: len(ids)] = ids
        alive = np.flatnonzero(ids >= 0)
        self._labels = LabelOf()
        self._labels.put(ids[alive], alive)
        self._tombstones = np.flatnonzero(ids < 0).tolist()
        self._epoch += 1

    @property
    def tier(self) -> str:
        """One of `TIERS`."""
        return self._tier

    @property
    def trained(self) -> bool:
        """False while an IVF tier is still kept flat."""
        return not self._flat or self._tier not in TRAIN_FROM

    def __len__(self) -> int:
        return len(self._labels)

    # --- changing ---

    def add(self, vectors: ArrayLike, ids: ArrayLike) -> None:
        """See `VectorIndex.add`."""
        new, given = check_batch(vectors, ids, self.dim)
        with self._lock.write:
            check_new(given[self._labels.find(given) >= 0])
            self._insert(new, given)
            ready = self._flat and len(self._labels) >= TRAIN_FROM.get(self._tier, len(self._labels) + 1)
        if ready:
            self.promote(self._tier)

    def _insert(self, new: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        start, stop = self._next, self._next + len(ids)
        labels = np.arange(start, stop, dtype=np.int64)
        if stop >= len(self._ids):  # the last place stays free: label -1, "none", finds id -1 there
            longer = np.full(stop + max(64, stop // 8), -1, np.int64)
            longer[:start] = self._ids[:start]
            self._ids = longer
        new = widened(new, self._host.d)
        if self._flat:
            self._host.add(new)  # its labels are its rows
        else:
            self._host.add_with_ids(new, labels)  # plain `add` would corrupt the map from labels to lists
        self._ids[start:stop] = ids
        self._labels.put(ids, labels)
        self._next = stop

    def remove(self, ids: ArrayLike) -> int:
        """See `VectorIndex.remove`."""
        given = check_ids(ids)
        with self._lock.write:
            gone = self._labels.pop(given)
            self._ids[gone] = -1
            self._tombstones += gone.tolist()
            # A rebuild in progress needs the labels as they are.
            if len(self._tombstones) > _MAX_TOMBSTONES and not self._rebuilding.locked():
                self._compact()
        return len(gone)

    def _compact(self) -> None:
        """Take the tombstones out of FAISS."""
        faiss = load_faiss()
        if self._flat:
            keep = self._ids[: self._next] >= 0
            self._host.remove_ids(faiss.IDSelectorBitmap(np.packbits(~keep, bitorder="little")))
            self._start(self._host, self._ids[: self._next][keep])  # the rows behind have moved up
        else:
            self._host.remove_ids(faiss.IDSelectorArray(np.array(self._tombstones, dtype=np.int64)))
            self._tombstones = []
            self._epoch += 1

    def promote(self, tier: str = "auto") -> bool:
        """Rebuild as the tier that suits the size now, or as the given one; returns whether that was needed.

        An IVF that has outgrown its lists is rebuilt as well. Others may search, add and remove meanwhile.
        """
        if tier not in (*TIERS, "auto"):
            raise ValueError(f"tier must be one of {', '.join(TIERS)} or auto, got {tier!r}")
        with self._rebuilding:
            with self._lock.read:
                target = tier_for(len(self._labels), self.device) if tier == "auto" else tier
                if not self._due(target):
                    return False
                labels = np.flatnonzero(self._ids[: self._next] >= 0)
                ids, vectors, seen = self._ids[labels], self._vectors(labels), self._next
            built = build(vectors, target, self._seed)  # the long part, with the index in use as it was
            del vectors
            with self._lock.write:
                late = np.arange(seen, self._next)
                late = late[self._ids[late] >= 0]
                late_ids, late_vectors = self._ids[late], self._vectors(late)
                self._tier = target
                self._start(built, np.where(self._ids[labels] >= 0, ids, -1))
                self._insert(late_vectors, late_ids)
        return True

    @property
    def due(self) -> bool:
        """Whether `promote` would rebuild it now."""
        with self._lock.read:
            return self._due(tier_for(len(self._labels), self.device))

    # --- reading ---

    def search(self, queries: ArrayLike, k: int, beside: ArrayLike | None = None) -> SearchResult:
        """See `VectorIndex.search`.

        beside: (n, dim) what else is known of each query; the inverted lists nearest to it are visited too.
        """
        wanted, k = check_queries(queries, self.dim), check_k(k)
        hint = None if beside is None else check_queries(beside, self.dim, "beside")
        with self._lock.read, self._alone(len(wanted)):
            wanted = widened(wanted, self._host.d)
            if hint is not None and not self._flat and self._gpu is None:
                lists = [self._lists(widened(part, self._host.d)) for part in (wanted, hint)]
                found = self._visit(wanted, *_distinct(*lists), k + len(self._tombstones))
            else:
                found = self._nearest(wanted, k + len(self._tombstones))
            return self._present(wanted, found, k)

    def search_both(self, queries: ArrayLike, more: ArrayLike, k: int) -> tuple[SearchResult, SearchResult]:
        """`search` of queries + more, and of the queries: (n, dim) each.

        `more` is to be small beside the queries: where inverted lists are read as a whole, those nearest to
        the queries serve both, and are read once.
        """
        base, extra, k = check_queries(queries, self.dim), check_queries(more, self.dim, "more"), check_k(k)
        n = len(base)
        with self._lock.read, self._alone(n):
            if self._by_lists(n):
                parts = [widened(part, self._host.d) for part in (base, extra)]
                nearest = self._lists(parts[0])[1]
                if self._crowded(nearest, 2):
                    alone, whole = list_search(self._host, parts, nearest, k + len(self._tombstones))
                    return self._present(parts[0] + parts[1], whole, k), self._present(parts[0], alone, k)
        return split_result(self.search(np.concatenate([base + extra, base]), k), n)

    def _present(self, queries: NDArray[np.float32], found: Found, k: int) -> SearchResult:
        """What was found, without tombstones; (n, host's width) queries that found too little look anew."""
        similarity, labels = found
        ids = self._ids.take(labels)
        if not ids.size or ids.min() >= 0:
            return SearchResult(similarity[:, :k], ids[:, :k])
        if not self._flat:
            short = (ids >= 0).sum(axis=1) < min(k, len(self._labels))
            if short.any():  # the lists visited hold too few: visit all
                everywhere = load_faiss().SearchParametersIVF(nprobe=self._host.nlist)
                similarity[short], labels[short] = self._host.search(
                    queries[short], labels.shape[1], params=everywhere
                )
                ids = self._ids.take(labels)
        absent = ids < 0
        similarity[absent] = -np.inf
        order = np.argsort(absent, axis=1, kind="stable")[:, :k]  # those present first, in order
        return SearchResult(np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1))

    def search_tensor(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`search` for CUDA tensors, without a detour through the host: (n, k) similarity and ids.

        Work is queued on the current stream of the queries' device. Queries are not checked for NaN.
        """
        import torch

        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must have shape (n, {self.dim}), got {tuple(queries.shape)}")
        if (
            self._gpu is None
            or not queries.is_cuda
            or k + len(self._tombstones) > MAX_NEIGHBOURS
            or not len(self)
        ):
            result = self.search(queries.detach().float().cpu().numpy(), k)
            similarity, ids = map(torch.from_numpy, result)
            return similarity.to(queries.device), ids.to(queries.device)
        with self._lock.read:
            host = self._for_gpu()
            padded = torch.nn.functional.pad(queries, (0, self._host.d - self.dim))
            similarity, labels = self._gpu.search_tensor(host, padded, check_k(k) + len(self._tombstones))
            ids = self._gpu.ids_tensor(host, queries.device)[labels]
        similarity, order = similarity.masked_fill(ids < 0, -torch.inf).topk(k, dim=1)
        return similarity, ids.gather(1, order)

    def ids(self) -> NDArray[np.int64]:
        """See `VectorIndex.ids`."""
        with self._lock.read:
            known = self._ids[: self._next]
            return known[known >= 0]

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """See `VectorIndex.reconstruct`."""
        wanted = check_ids(ids)
        with self._lock.read:
            labels = self._labels.find(wanted)
            check_known(wanted[labels < 0])
            return self._vectors(labels)

    @property
    def ids_nbytes(self) -> int:
        """Bytes of memory that the ids take, beside the vectors."""
        return int(self._ids.nbytes) + self._labels.nbytes

    def to_bytes(self) -> bytes:
        """See `VectorIndex.to_bytes`."""
        faiss = load_faiss()
        with self._lock.read:
            header = {
                "tier": self._tier,
                "dim": self.dim,
                "seed": self._seed,
                "built_for": self._built_for,
                "tombstones": self._tombstones,
            }
            return pack(header, self._ids[: self._next], faiss.serialize_index(self._host).data)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, *, device: str = "auto") -> FaissIndex:
        """The inverse of `to_bytes`; raises ValueError where the data is no such index."""
        faiss = load_faiss()
        header, ids, body = unpack(data)
        try:
            index = cls(header["dim"], header["tier"], device=device, seed=header["seed"])
            index._start(faiss.deserialize_index(np.frombuffer(body, np.uint8)), ids)
            index._built_for, index._tombstones = int(header["built_for"]), list(header["tombstones"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"vector index: {error}") from error
        size = len(index) + len(index._tombstones)
        # Folders from before rows were widened hold them as they are.
        if index._host.d not in (index.dim, wide(index.dim)) or index._host.ntotal != size:
            raise ValueError("vector index: the vectors are not those that the header describes")
        return index

    # --- with the lock held ---

    def _due(self, target: str) -> bool:
        size = len(self._labels)
        outgrown = not self._flat and size > _OUTGROWN * self._built_for
        ready = self._flat and size >= TRAIN_FROM.get(target, size + 1)
        return target != self._tier or outgrown or ready

    def _nearest(self, queries: NDArray[np.float32], k: int) -> Found:
        """The k nearest, tombstones included."""
        if self._gpu is not None and self._host.ntotal and k <= MAX_NEIGHBOURS:
            return self._gpu.search(self._for_gpu(), queries, k)
        if len(queries) < _PRODUCT_FROM[self._kept_as]:
            return self._host.search(queries, k)
        if self._flat:
            return product_search(self._rows, self._host.ntotal, queries, k)
        return self._visit(queries, *self._lists(queries), k)

    def _visit(
        self, queries: NDArray[np.float32], similarity: NDArray[np.float32], lists: NDArray[np.int64], k: int
    ) -> Found:
        """The k nearest in (n, visits) lists, each of the similarity given."""
        if self._by_lists(len(queries)) and self._crowded(lists):
            return list_search(self._host, [queries], lists, k)[0]
        return scan(self._host, queries, similarity, lists, k)

    def _lists(self, queries: NDArray[np.float32]) -> Found:
        """Similarities and numbers of the lists to visit."""
        host = self._host
        return product_search(lambda i, j: self._centroids[i:j], host.nlist, queries, host.nprobe)

    def _by_lists(self, queries: int) -> bool:
        """Whether so many queries may read lists as a whole."""
        enough = self._gpu is None and queries >= _PRODUCT_FROM["ivf"]
        return enough and not self._flat and self._tier == "ivf_fp16"

    def _alone(self, queries: int) -> AbstractContextManager[None]:
        """One thread for so many queries: in lists, pools of numpy, torch and FAISS wait for each other."""
        return one_thread(self._by_lists(queries) and several_threads())

    def _crowded(self, nearest: NDArray[np.int64], times: int = 1) -> bool:
        """Whether the lists that are visited have visitors enough, each of whom asks so many times."""
        return times * nearest.size > _VISITORS * len(np.unique(nearest))

    def _vectors(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        if not len(labels):
            return np.empty((0, self.dim), np.float32)
        return np.ascontiguousarray(self._host.reconstruct_batch(labels)[:, : self.dim])

    def _rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a flat index; single precision in place, half precision decoded."""
        if self._kept_as == "flat":
            return flat_rows(self._host)[start:stop]
        return half_rows(self._host, start, stop)

    def _for_gpu(self) -> Host:
        return Host(
            self._host,
            self._epoch,
            self._next,
            self._ids,
            self._rows,
            flat=self._flat,
            half=self._kept_as != "flat",
        )


def _distinct(first: Found, second: Found) -> Found:
    """Lists side by side, and -1 instead of one that is named already."""
    similarity = np.concatenate([first[0], second[0]], axis=1)
    again = (second[1][:, :, None] == first[1][:, None, :]).any(axis=2)
    return similarity, np.concatenate([first[1], np.where(again, -1, second[1])], axis=1)
