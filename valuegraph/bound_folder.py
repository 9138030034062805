"""The folder that a model is bound to: what the model has of it, and its lock from the first write on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from valuegraph.persistence import FolderWriter, ModelFolderError

__all__ = ["BoundFolder"]

# Logged updates after which the next one calls for a snapshot, so that loading never replays more.
_LOGGED = 64


class BoundFolder:
    """A folder that holds what a model holds, for it to write on.

    path: where it is.
    snapshot: number of the snapshot that the model was read from, or has written last.
    sequence: number of the last logged update that the model has.
    """

    def __init__(self, path: Path, snapshot: int, sequence: int) -> None:
        self.path, self.snapshot, self.sequence = path, snapshot, sequence
        self._writer: FolderWriter | None = None

    @classmethod
    def taken(cls, path: Path) -> BoundFolder:
        """A folder to be replaced, whatever it holds; raises as `FolderWriter` does."""
        writer = FolderWriter(path)
        bound = cls(path, writer.snapshot_number, writer.log.last_sequence)
        bound._writer = writer
        return bound

    @property
    def locked(self) -> bool:
        """Whether nobody else can write there."""
        return self._writer is not None

    @property
    def overdue(self) -> bool:
        """Whether the log has become so long that a snapshot should take it in."""
        return self._writer is not None and self.sequence - self._writer.log.base >= _LOGGED

    def append(self, update: bytes) -> None:
        """Log an update, durably. Raises `ModelFolderError` where somebody else has written there since."""
        self.sequence = self._opened().log.append(update)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the snapshot by what `model_state.packed` gave; raises as `append` does."""
        writer = self._opened()
        try:
            writer.snapshot(**state, last_sequence=self.sequence)
        finally:  # what fails may have failed after the commit
            self.snapshot = writer.snapshot_number

    def close(self) -> None:
        """Give up the lock; the next write takes it again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _opened(self) -> FolderWriter:
        if self._writer is None:
            writer = FolderWriter(self.path)
            if (writer.snapshot_number, writer.log.last_sequence) != (self.snapshot, self.sequence):
                writer.close()
                raise ModelFolderError(f"{self.path}: somebody else has written there since; load it again")
            self._writer = writer
        return self._writer
