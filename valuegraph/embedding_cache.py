"""Each distinct text is embedded once: rows in memory and, given a file, on disk for the next process."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]
"""n texts -> (n, d) float32, each row depending on its text alone."""

# A million rows of 384 numbers are 1.5 GB. Beyond it memory starts afresh: rows are reproducible, so that
# forgetting changes no score.
MEMORY_ROWS = 1_000_000
# What an interrupted run loses at most.
CHUNK = 1024
# SQLite binds at most 999 variables in its oldest builds.
LOOKUP = 500


class EmbeddingCache:
    """Text -> row. One float32 matrix that doubles as it fills, and optionally an SQLite file beside it.

    The file belongs to one set of weights and one way of running them; whoever names it sees to that.
    Processes of one machine may share it (not on a network drive). Not thread-safe: its
    owner holds the lock. Every access opens and closes the file, so a forked child inherits no connection.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._index: dict[str, int] = {}
        self._matrix = np.empty((0, 0), np.float32)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._database(write=True) as db:
                db.execute("CREATE TABLE IF NOT EXISTS rows (text BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")

    def __len__(self) -> int:
        return len(self._index)

    def rows(self, texts: Sequence[str], embed: Embed) -> np.ndarray:
        """(n, d) float32 rows of n >= 1 texts; `embed` is called on those stored nowhere, each once."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._index]
        if len(self._index) + len(missing) > MEMORY_ROWS:
            self._index.clear()
            missing = list(dict.fromkeys(texts))
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            if self.path is not None:
                self._load(chunk)
            fresh = [text for text in chunk if text not in self._index]
            if fresh:
                rows = embed(fresh)
                if self.path is not None:
                    self._store(fresh, rows)
                self._remember(fresh, rows)
        return self._matrix[[self._index[text] for text in texts]]

    def _remember(self, texts: Sequence[str], rows: np.ndarray) -> None:
        used, needed = len(self._index), len(self._index) + len(texts)
        if needed > len(self._matrix):
            grown = np.empty((max(needed, 2 * len(self._matrix), CHUNK), rows.shape[1]), np.float32)
            if used:
                grown[:used] = self._matrix[:used]
            self._matrix = grown
        self._matrix[used:needed] = rows
        self._index.update(zip(texts, range(used, needed), strict=True))

    def _load(self, texts: Sequence[str]) -> None:
        by_key = {_key(text): text for text in texts}
        keys = list(by_key)
        found: list[tuple[bytes, bytes]] = []
        with self._database() as db:
            for start in range(0, len(keys), LOOKUP):
                part = keys[start : start + LOOKUP]
                marks = ",".join("?" * len(part))
                found += db.execute(f"SELECT text, row FROM rows WHERE text IN ({marks})", part)
        if found:
            rows = np.stack([np.frombuffer(row, "<f4") for _, row in found])
            self._remember([by_key[key] for key, _ in found], rows)

    def _store(self, texts: Sequence[str], rows: np.ndarray) -> None:
        blobs = (row.astype("<f4").tobytes() for row in rows)
        with self._database(write=True) as db:
            # Another process may have embedded the same text meanwhile: the same row, so the first one stays.
            db.executemany(
                "INSERT OR IGNORE INTO rows VALUES (?, ?)", zip(map(_key, texts), blobs, strict=True)
            )

    @contextmanager
    def _database(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """The open file; with `write`, one transaction that waits its turn before it reads anything.

        SQLite's own rollback journal: switching a file to another kind fails at once when somebody else has
        it open, however long the timeout.
        """
        try:
            with closing(sqlite3.connect(self.path or "", timeout=60.0, isolation_level=None)) as db, db:
                db.execute("PRAGMA synchronous=NORMAL")
                if write:
                    db.execute("BEGIN IMMEDIATE")
                yield db
        except sqlite3.DatabaseError as error:
            raise OSError(
                f"embedding cache {self.path}: {error}; it can be deleted, and is then built anew"
            ) from error


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
