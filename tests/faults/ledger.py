"""A model whose every byte follows from the records it has taken in: any loss, mixture or repeat shows."""

import hashlib
import random

import numpy as np

from valuegraph.persistence import Folder

THREADS = 3


def payload(thread: int, count: int) -> bytes:
    """The record that a thread writes as its number `count`, counting from 1."""
    rng = random.Random(thread * 1_000_003 + count)
    size = 300_000 if count % 53 == 0 else rng.choice((0, 7, 200, 3000))
    return b"%d %d " % (thread, count) + rng.randbytes(size)


_chains: list[list[bytes]] = [[b""] for _ in range(THREADS)]


def chain(thread: int, count: int) -> bytes:
    """A digest of a thread's first `count` records."""
    known = _chains[thread]
    while len(known) <= count:
        known.append(hashlib.sha256(known[-1] + payload(thread, len(known))).digest())
    return known[count]


class Ledger:
    """How many records of each thread the model contains."""

    def __init__(self, counts=None):
        self.counts = list(counts or [0] * THREADS)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def take(self, record: bytes) -> None:
        thread = int(record.split(b" ", 1)[0])
        self.counts[thread] += 1
        assert record == payload(thread, self.counts[thread]), f"not record {self.counts[thread]} of {thread}"

    def contents(self) -> dict:
        """What a snapshot of this state consists of; which files there are changes from state to state."""
        chains = [chain(thread, count) for thread, count in enumerate(self.counts)]
        state = {"counts": np.array(self.counts), "ballast": np.full(500, self.total, np.float32)}
        sometimes = {"sometimes": {"total": np.array(self.total)}} if self.total % 2 else {}
        return {
            "config": {"counts": self.counts},
            "tensors": {"state": state, **sometimes},
            "blobs": {"index.faiss": b"".join(chains) * 20},
            "documents": {"chains": [c.hex() for c in chains]},
        }

    @classmethod
    def of(cls, folder: Folder) -> "Ledger":
        """The state in a folder: the snapshot, every part compared, and then each logged update."""
        ledger = cls(folder.config["counts"])
        wanted = ledger.contents()
        assert folder.last_sequence == ledger.total
        assert folder.config == wanted["config"] | {"format_version": 1}
        assert folder.blobs == wanted["blobs"]
        assert folder.documents == wanted["documents"]
        assert folder.tensors.keys() == wanted["tensors"].keys()
        for name, group in wanted["tensors"].items():
            assert folder.tensors[name].keys() == group.keys()
            for key, array in group.items():
                np.testing.assert_array_equal(folder.tensors[name][key], array, strict=True)
        for record in folder.updates:
            assert record.sequence == ledger.total + 1
            ledger.take(record.payload)
        return ledger
