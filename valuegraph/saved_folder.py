"""A saved model as readers find it: one consistent view of its folder, or a list of what is wrong there.

Readers need no lock: they open every file before they read one, and begin again if a commit fell in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from valuegraph.durable import ModelFolderError
from valuegraph.manifest import CONFIG, LOG, MANIFEST, Manifest, load_member, missing, opened
from valuegraph.wal_format import LogReader, Record

__all__ = ["Finding", "Folder", "check_log", "read_folder", "verify_folder"]


@dataclass(frozen=True, slots=True)
class Folder:
    """One consistent view of a model folder: its newest snapshot, and the updates logged since."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, dict[str, np.ndarray]]
    blobs: dict[str, bytes]
    documents: dict[str, Any]
    snapshot: int
    """Number of the snapshot, counting up from 1."""
    last_sequence: int
    """Number of the last update that the snapshot contains."""
    updates: tuple[Record, ...]
    """The logged updates after that one, in order."""
    notices: tuple[str, ...]
    """What was out of the ordinary and harmless, such as the torn tail of the log."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `verify_folder` found."""

    file: str
    problem: str
    damage: bool = True
    """False for what a crash may leave: nothing is lost, and the next writer tidies it up."""


def read_folder(path: str | os.PathLike[str], *, verify: bool = True) -> Folder:
    """Read the newest snapshot and the updates logged since; safe while somebody writes.

    With `verify` off, the sha256 of each file is not computed; all else is still checked. Raises
    `ModelFolderError` naming the file that is missing, damaged, cut short or written by a newer version.
    """
    folder = Path(path)
    with opened(folder) as (manifest, files):
        contents: dict[str, dict[str, Any]] = {"config": {}, "tensors": {}, "blob": {}, "document": {}}
        for name, member in manifest.files.items():
            key = name if member.kind in ("config", "blob") else Path(name).stem
            contents[member.kind][key] = load_member(folder / name, member, files[name], verify)
        updates, notices = _read_log(folder / LOG, manifest, files[LOG])
    return Folder(
        path=folder,
        config=contents["config"][CONFIG],
        tensors=contents["tensors"],
        blobs=contents["blob"],
        documents=contents["document"],
        snapshot=manifest.snapshot,
        last_sequence=manifest.last_sequence,
        updates=updates,
        notices=notices,
    )


def verify_folder(path: str | os.PathLike[str]) -> list[Finding]:
    """Check every checksum and every log record; an empty list says that all is as it was written."""
    folder = Path(path)
    findings: list[Finding] = []

    def check(name: str, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except ModelFolderError as error:
            findings.append(Finding(name, str(error)))

    def check_all() -> None:
        with opened(folder) as (manifest, files):
            for name, member in manifest.files.items():
                check(name, partial(load_member, folder / name, member, files[name], True))
            read = check(LOG, partial(_read_log, folder / LOG, manifest, files[LOG]))
            findings.extend(Finding(LOG, notice, damage=False) for notice in (read[1] if read else ()))

    check(MANIFEST, check_all)
    for draft in sorted(folder.glob(".*.staged")):
        problem = f"{draft}: left by a snapshot that was interrupted or is being written"
        findings.append(Finding(draft.name, problem, damage=False))
    return findings


def _read_log(
    path: Path, manifest: Manifest, file: BinaryIO | None
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    if file is None:
        raise missing(path)
    log = LogReader(file, path)
    updates = tuple(record for record in log if record.sequence > manifest.last_sequence)
    check_log(path, manifest, log.base, log.last_sequence)
    return updates, tuple(log.notices)


def check_log(path: Path, manifest: Manifest, base: int, last: int) -> None:
    """Raise unless the log goes on where the snapshot ends."""
    end = manifest.last_sequence
    if not base <= end <= last:
        raise ModelFolderError(
            f"{path}: does not belong to the snapshot beside it: it holds updates {base + 1} to {last}, "
            f"the snapshot ends with {end}"
        )
