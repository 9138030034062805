"""Vectors in FAISS under the caller's ids: how they are kept, change and are built anew."""

from __future__ import annotations

import threading
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.faiss_build import build, empty
from valuegraph.faiss_cagra import GraphCopy
from valuegraph.faiss_gpu import GpuCopy, has_cagra
from valuegraph.faiss_host import HostSearch
from valuegraph.faiss_search import half_codes, load_faiss, wide
from valuegraph.labels import Labels
from valuegraph.locks import ReadWriteLock
from valuegraph.tiers import TRAIN_FROM, check_tier, device_of, tier_for
from valuegraph.vectors import check_batch, check_dim, check_ids, check_known, check_new, pack, unpack

__all__ = ["FaissStore"]

_MAX_TOMBSTONES = 256  # a search asks for that many neighbours more, so there may not be many
_COPY_ROWS = 1 << 16
_OUTGROWN = 4.0  # an IVF is rebuilt when it holds that many times the vectors that it was made for


class FaissStore:
    """All of a `FaissIndex` but its searches.

    FAISS knows vectors by labels, see `Labels`. A removed vector stays until there are too many. An IVF tier
    stays flat until it can be trained; a graph on a GPU is built, and built anew, in the background.
    """

    def __init__(self, dim: int, tier: str = "flat", *, device: str = "cpu", seed: int = 0) -> None:
        check_tier(tier, device)
        self.dim = check_dim(dim)
        self.device = device_of(device)
        self._tier = tier
        self._seed = seed
        self._lock = ReadWriteLock()
        self._rebuilding = threading.Lock()
        self._gpu = self._copy_for(tier)
        self._epoch = 0
        self._start(empty(dim, "flat_fp16" if tier in TRAIN_FROM else tier), np.empty(0, np.int64))

    def _copy_for(self, tier: str) -> GpuCopy | GraphCopy | None:
        if self.device != "cuda":
            return None
        return GraphCopy() if tier == "cagra" and has_cagra() else GpuCopy()

    def _start(self, host: Any, ids: NDArray[np.int64]) -> None:
        """Labels 0 .. n-1 in `host` stand for these ids; -1 is a label without a vector."""
        self._host = host
        self._on_host = HostSearch(host, half_lists=self._tier == "ivf_fp16")
        self._flat = self._on_host.flat
        self._built_for = host.ntotal
        self._labels = Labels(ids)
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
        new = self._on_host.widened(new)
        if self._flat:
            self._host.add(new)  # its labels are its rows
            self._labels.put(ids)
        else:
            # Plain `add` would corrupt the map from labels to lists.
            self._host.add_with_ids(new, np.arange(len(ids)) + self._labels.next)
            self._labels.put(ids)

    def remove(self, ids: ArrayLike) -> int:
        """See `VectorIndex.remove`."""
        given = check_ids(ids)
        with self._lock.write:
            gone = self._labels.pop(given)
            # A rebuild in progress needs the labels as they are.
            if len(self._labels.tombstones) > _MAX_TOMBSTONES and not self._rebuilding.locked():
                self._compact()
        return len(gone)

    def _compact(self) -> None:
        """Take the tombstones out of FAISS."""
        faiss = load_faiss()
        if self._flat:
            kept = self._labels.known >= 0
            self._host.remove_ids(faiss.IDSelectorBitmap(np.packbits(~kept, bitorder="little")))
            self._start(self._host, self._labels.known[kept])  # the rows behind have moved up
            if isinstance(self._gpu, GraphCopy):
                self._gpu.compacted(kept, self._epoch)
        else:
            self._host.remove_ids(faiss.IDSelectorArray(np.array(self._labels.tombstones, dtype=np.int64)))
            self._labels.tombstones = []
            self._epoch += 1

    # --- building anew ---

    def promote(self, tier: str = "auto") -> bool:
        """Rebuild as the tier that suits the size now, or as the given one; returns whether that was needed.

        An IVF that has outgrown its lists is rebuilt as well, and a graph on a GPU that has fallen behind.
        "auto" leaves such a graph a graph. Others may search, add and remove meanwhile.
        """
        if tier != "auto":
            check_tier(tier, self.device)
        with self._rebuilding:
            with self._lock.read:
                target = self._suited() if tier == "auto" else tier
                if not self._due(target):
                    return False
                labels, seen = self._labels.alive(), self._labels.next
                ids = self._labels.ids[labels]
                vectors = None if target == self._tier == "cagra" else self._on_host.vectors(labels, self.dim)
            if vectors is not None:
                built = build(vectors, target, self._seed)  # the long part, with the index in use as it was
                del vectors
                with self._lock.write:
                    late = self._labels.alive(seen)
                    late_ids, late_vectors = self._labels.ids[late], self._on_host.vectors(late, self.dim)
                    if "cagra" in (target, self._tier):
                        self._gpu = self._copy_for(target)
                    self._tier = target
                    self._start(built, np.where(self._labels.ids[labels] >= 0, ids, -1))
                    self._insert(late_vectors, late_ids)
            self._build_graph()
        return True

    @property
    def due(self) -> bool:
        """Whether `promote` would rebuild it now."""
        with self._lock.read:
            return self._due(self._suited())

    def _suited(self) -> str:
        if isinstance(self._gpu, GraphCopy):
            return self._tier
        return tier_for(len(self._labels), self.device)

    def _due(self, target: str) -> bool:
        size = len(self._labels)
        outgrown = not self._flat and size > _OUTGROWN * self._built_for
        ready = self._flat and size >= TRAIN_FROM.get(target, size + 1)
        return target != self._tier or outgrown or ready or self._behind()

    def _behind(self) -> bool:
        return isinstance(self._gpu, GraphCopy) and self._gpu.due(self._epoch, self._labels.next)

    def _build_graph(self) -> None:
        """With `_rebuilding` held, under which labels stay what they are."""
        with self._lock.read:
            copy = self._gpu
            if not isinstance(copy, GraphCopy) or not self._behind():
                return
            labels, epoch, seen = self._labels.alive(), self._epoch, self._labels.next
        rows = np.empty((len(labels), self._host.d), np.float16)
        # A copy, as rows move; in parts, so that none wait long.
        for start in range(0, len(labels), _COPY_ROWS):
            with self._lock.read:
                rows[start : start + _COPY_ROWS] = half_codes(self._host)[labels[start : start + _COPY_ROWS]]
        copy.build(rows, labels, epoch, seen, self._seed)

    def _keep_up(self) -> None:
        """Build a graph that is due in the background; one at a time."""
        if self._behind() and self._rebuilding.acquire(blocking=False):
            threading.Thread(target=self._build_and_release, daemon=True).start()

    def _build_and_release(self) -> None:
        try:
            self._build_graph()
        except Exception as error:
            warnings.warn(f"no graph on the GPU, vectors are scanned instead: {error}", stacklevel=1)
        finally:
            self._rebuilding.release()

    # --- reading ---

    def ids(self) -> NDArray[np.int64]:
        """See `VectorIndex.ids`."""
        with self._lock.read:
            known = self._labels.known
            return known[known >= 0]

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """See `VectorIndex.reconstruct`."""
        wanted = check_ids(ids)
        with self._lock.read:
            labels = self._labels.find(wanted)
            check_known(wanted[labels < 0])
            return self._on_host.vectors(labels, self.dim)

    @property
    def ids_nbytes(self) -> int:
        """Bytes of memory that the ids take, beside the vectors."""
        return self._labels.nbytes

    def to_bytes(self) -> bytes:
        """See `VectorIndex.to_bytes`."""
        faiss = load_faiss()
        with self._lock.read:
            header = {
                "tier": self._tier,
                "dim": self.dim,
                "seed": self._seed,
                "built_for": self._built_for,
                "tombstones": self._labels.tombstones,
            }
            return pack(header, self._labels.known, faiss.serialize_index(self._host).data)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, *, device: str = "auto") -> Self:
        """The inverse of `to_bytes`; raises ValueError where the data is no such index."""
        faiss = load_faiss()
        header, ids, body = unpack(data)
        try:
            index = cls(header["dim"], header["tier"], device=device, seed=header["seed"])
            index._start(faiss.deserialize_index(np.frombuffer(body, np.uint8)), ids)
            index._built_for = int(header["built_for"])
            index._labels.tombstones = list(header["tombstones"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"vector index: {error}") from error
        size = len(index) + len(index._labels.tombstones)
        # Folders from before rows were widened hold them as they are.
        if index._host.d not in (index.dim, wide(index.dim)) or index._host.ntotal != size:
            raise ValueError("vector index: the vectors are not those that the header describes")
        return index
