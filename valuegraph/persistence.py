"""A saved model: one folder that is whole at every moment, whatever kills the process that writes it.

::

    config.json  *.safetensors  *.json  index.faiss ...    the snapshot
    manifest.json                                          size and sha256 of each of them, and of itself
    updates.wal                                            what was learned since the snapshot (see `wal`)
    writer.lock                                            only while somebody writes

A new snapshot is written beside the old one under hidden names (`.NAME.NUMBER.staged`), made durable, and
committed by one atomic rename, that of `manifest.json`. Only then do its files take their own names. A crash
before the commit leaves the old snapshot, and litter; a crash after it leaves the new one, some of it still
under hidden names, where readers look first. The next writer finishes the renames and takes out the litter.
The manifest records the last update that the snapshot contains, so one that is still in the log counts once.

Here is who writes it, and all the names of the rest; how it is read is in `saved_folder`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from valuegraph.durable import (
    FolderBusyError,
    ModelFolderError,
    Payload,
    WriterLock,
    make_folder,
    sync_folder,
)
from valuegraph.manifest import (
    FORMAT_VERSION,
    LOG,
    MANIFEST,
    Manifest,
    committed,
    missing,
    plan_files,
    read_manifest,
    staged,
    write_member,
)
from valuegraph.saved_folder import Finding, Folder, check_log, read_folder, verify_folder
from valuegraph.wal import WriteAheadLog
from valuegraph.wal_format import Record

__all__ = [
    "FORMAT_VERSION",
    "Finding",
    "Folder",
    "FolderBusyError",
    "FolderWriter",
    "ModelFolderError",
    "Record",
    "WriteAheadLog",
    "WriterLock",
    "read_folder",
    "verify_folder",
    "write_folder",
]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def write_folder(
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, np.ndarray]] = _NOTHING,
    blobs: Mapping[str, Payload] = _NOTHING,
    documents: Mapping[str, Any] = _NOTHING,
) -> int:
    """Make or replace the model in a folder in one atomic, durable step; returns the number of the snapshot.

    Files: config.json (with "format_version"), GROUP.safetensors for each group of `tensors`, NAME.json for
    each of `documents`, and each of `blobs` under its own name. Updates still in the folder's log are
    superseded. Raises `FolderBusyError` if somebody else is writing there, `ModelFolderError` if the folder
    is damaged or a file that is no model's is in the way, `ValueError` for what cannot be stored, `OSError`
    if the disk refuses; the folder then holds what it held.
    """
    with FolderWriter(path) as writer:
        return writer.snapshot(config=config, tensors=tensors, blobs=blobs, documents=documents)


class FolderWriter:
    """The one writer of a model folder: holds its lock, appends to its log, replaces its snapshot.

    Opening makes the folder if there is none and tidies up after a crash. Raises as `write_folder` does.
    """

    log: WriteAheadLog
    """The updates since the snapshot: `append` them once there is one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        make_folder(self.path)
        self._turn = threading.Lock()
        self._lock = WriterLock(self.path)
        try:
            self._manifest = read_manifest(self.path) if (self.path / MANIFEST).exists() else None
            self._settle()
            if self._manifest and not (self.path / LOG).exists():
                raise missing(self.path / LOG)
            self.log = WriteAheadLog(self.path / LOG)
            if self._manifest:
                check_log(self.path / LOG, self._manifest, self.log.base, self.log.last_sequence)
            elif self.log.last_sequence:
                raise missing(self.path / MANIFEST)
        except BaseException:
            self._lock.release()
            raise

    @property
    def snapshot_number(self) -> int:
        """Number of the snapshot in the folder, 0 while there is none."""
        return self._manifest.snapshot if self._manifest else 0

    def snapshot(
        self,
        *,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, np.ndarray]] = _NOTHING,
        blobs: Mapping[str, Payload] = _NOTHING,
        documents: Mapping[str, Any] = _NOTHING,
        last_sequence: int | None = None,
    ) -> int:
        """Replace the snapshot as `write_folder` does, then drop the updates that it contains from the log.

        `last_sequence` is the last update in it (default: the last in the log). Others may append meanwhile.
        """
        with self._turn:
            if not self._lock.release.alive:
                raise ValueError(f"{self.path}: this writer is closed, or was opened before a fork")
            through = self.log.last_sequence if last_sequence is None else last_sequence
            if not self.log.base <= through <= self.log.last_sequence:
                raise ValueError(
                    f"{self.path}: a snapshot cannot end with update {through}: the log does not"
                )
            files = plan_files(config, tensors, blobs, documents)
            self._settle()
            self._commit(files, through)
            self._settle()
            self.log.rotate(through)
            return self.snapshot_number

    def close(self) -> None:
        """Close the log and give up the lock."""
        with self._turn:
            try:
                self.log.close()
            finally:
                self._lock.release()

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _commit(self, files: Mapping[str, tuple[str, Iterable[Payload]]], through: int) -> None:
        """Write the files under their hidden names and make them the snapshot, or change nothing."""
        known = self._manifest.files if self._manifest else {}
        for name in files:
            if name not in known and (self.path / name).exists():
                raise ModelFolderError(f"{self.path / name}: is in the way: it is not part of a saved model")
        number, manifest = self.snapshot_number + 1, None
        draft = staged(self.path, MANIFEST, number)
        try:
            members = {
                name: write_member(staged(self.path, name, number), kind, chunks)
                for name, (kind, chunks) in files.items()
            }
            manifest = Manifest(number, through, members, tuple(known.keys() - members.keys()))
            write_member(draft, "manifest", [manifest.encode()])
            sync_folder(self.path)
            os.replace(draft, self.path / MANIFEST)
        except BaseException as error:
            # Whatever it was, it may have come after the rename: sweeping would then take a snapshot apart.
            if manifest and committed(self.path, manifest):
                self._manifest = manifest
                raise
            self._sweep()
            if isinstance(error, OSError):
                message = f"snapshot not written ({error.strerror}); all that was saved before is still there"
                raise OSError(error.errno, message, str(self.path)) from error
            raise
        self._manifest = manifest

    def _settle(self) -> None:
        """Give the files of a committed snapshot their names, and take out what else a crash has left."""
        if self._manifest:
            drafts = {name: staged(self.path, name, self.snapshot_number) for name in self._manifest.files}
            waiting = [name for name, draft in drafts.items() if draft.exists()]
            if waiting:
                sync_folder(self.path)  # the commit must be durable before the old files go
                for name in self._manifest.removed:
                    (self.path / name).unlink(missing_ok=True)
                if self._manifest.removed:
                    sync_folder(self.path)  # the waiting files are what says that this is still to be done
                for name in waiting:
                    os.replace(drafts[name], self.path / name)
        self._sweep()

    def _sweep(self) -> None:
        for litter in self.path.glob(".*.staged"):
            with suppress(OSError):
                litter.unlink()
