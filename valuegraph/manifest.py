"""The files of one snapshot, and the manifest that vouches for them.

`manifest.json` holds the size and the sha256 of each file, and a sha256 of itself; it has one valid encoding,
so every changed byte shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from valuegraph.durable import BINARY, LOCK, ModelFolderError, Payload, sync, write_all
from valuegraph.tensor_file import read_tensors, tensor_chunks

FORMAT_VERSION = 1
CONFIG, MANIFEST, LOG = "config.json", "manifest.json", "updates.wal"

_FORMAT = "valuegraph model folder"
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Member:
    """What the manifest knows of one file."""

    kind: str  # "config", "tensors", "blob" or "document"
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says."""

    snapshot: int
    """Number of the snapshot, counting up from 1."""
    last_sequence: int
    """Number of the last logged update that the snapshot contains."""
    files: dict[str, Member]
    removed: tuple[str, ...]
    """Files of the snapshot before that this one does without."""
    format: str = _FORMAT
    format_version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """The bytes of `manifest.json`."""
        return _seal(asdict(self))


def staged(folder: Path, name: str, number: int) -> Path:
    """Where a file of a snapshot waits until the snapshot is committed."""
    return folder / f".{name}.{number}.staged"


def missing(path: Path) -> ModelFolderError:
    """The error for a file that a model folder ought to have."""
    return ModelFolderError(f"{path}: is missing, though other files of a model are there")


def _seal(body: dict[str, Any]) -> bytes:
    """A JSON object with a checksum of itself as one more field; one object has one encoding."""
    body = {key: value for key, value in body.items() if key != "checksum"}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"checksum": checksum}, sort_keys=True, indent=1).encode()


def _check_version(path: Path, body: Any, doubt: str = "") -> None:
    version = body.get("format_version") if isinstance(body, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelFolderError(
            f"{path}: was written by a newer valuegraph (format {version}), this one reads up to "
            f"{FORMAT_VERSION}{doubt}"
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; raises `ModelFolderError` if that is no model folder, damaged or too new."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            problem = "is a file, not a model folder" if folder.exists() else "there is no such folder"
            raise ModelFolderError(f"{folder}: {problem}") from error
        config = None
        with suppress(OSError, ValueError):
            config = json.loads((folder / CONFIG).read_bytes())
        _check_version(folder / CONFIG, config)  # a newer format may do without a manifest
        raise ModelFolderError(f"{folder}: is not a model folder: {MANIFEST} is missing") from error
    try:
        body = json.loads(raw)
        sound = isinstance(body, dict) and raw == _seal(body)
        _check_version(path, body, "" if sound else " (or it is damaged: its checksum does not match)")
        if not sound:
            raise ModelFolderError(f"{path}: is damaged or not a model's: its checksum does not match")
        body.pop("checksum")
        body["files"] = {name: Member(**member) for name, member in body["files"].items()}
        manifest = Manifest(**body | {"removed": tuple(body["removed"])})
        for name in (*manifest.files, *manifest.removed):
            _check_name(name)
    except ModelFolderError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFolderError(f"{path}: is damaged or not a model's ({error})") from error
    return manifest


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Manifest, dict[str, BinaryIO | None]]]:
    """The manifest and the open files of the snapshot and the log, of one moment; None for a missing one."""
    for _ in range(1000):
        manifest = read_manifest(folder)
        with ExitStack() as stack:
            files = {name: _open(stack, folder, name, manifest.snapshot) for name in (*manifest.files, LOG)}
            # A commit precedes the renames and the rotation that would have changed what was opened.
            if committed(folder, manifest):
                yield manifest, files
                return
    raise ModelFolderError(f"{folder}: its snapshot changes faster than it can be opened")


def committed(folder: Path, manifest: Manifest) -> bool:
    """Whether this is the manifest that the folder has."""
    with suppress(FileNotFoundError):
        return (folder / MANIFEST).read_bytes() == manifest.encode()
    return False


def _open(stack: ExitStack, folder: Path, name: str, number: int) -> BinaryIO | None:
    for path in (staged(folder, name, number), folder / name):
        with suppress(FileNotFoundError):
            return stack.enter_context(open(path, "rb", buffering=0))
    return None


def plan_files(
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    blobs: Mapping[str, Payload],
    documents: Mapping[str, Any],
) -> dict[str, tuple[str, Iterable[Payload]]]:
    """Name, kind and bytes of every file of a snapshot; raises `ValueError` for what cannot be stored."""
    version = {"format_version": FORMAT_VERSION}
    files: list[tuple[str, str, Iterable[Payload]]] = [
        *((f"{name}.safetensors", "tensors", tensor_chunks(group)) for name, group in tensors.items()),
        *((f"{name}.json", "document", [_dump(name, document)]) for name, document in documents.items()),
        *((name, "blob", [blob]) for name, blob in blobs.items()),
        (CONFIG, "config", [_dump("config", version | dict(config) | version, indent=1)]),
    ]
    for name, _, _ in files:
        _check_name(name)
    files_by_name = {name: (kind, chunks) for name, kind, chunks in files}
    if len(files_by_name) < len(files) or files_by_name[CONFIG][0] != "config":
        raise ValueError("two parts of the model would have the same file name")
    return files_by_name


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in (MANIFEST, LOG, LOCK):
        raise ValueError(f"{name!r} cannot be the name of a file of a model")


def _dump(name: str, value: Any, indent: int | None = None) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, indent=indent).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: cannot be stored as JSON ({error})") from error


def write_member(path: Path, kind: str, chunks: Iterable[Payload]) -> Member:
    """Write one file durably; in pieces, so that each is hashed while it is in the cache."""
    digest, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            for start in range(0, len(view), _CHUNK):
                piece = view[start : start + _CHUNK]
                digest.update(piece)
                write_all(fd, piece)
            size += len(view)
        sync(fd)
    finally:
        os.close(fd)
    return Member(kind, size, digest.hexdigest())


def load_member(path: Path, member: Member, file: BinaryIO | None, verify: bool) -> Any:
    """The contents of one file of the snapshot, checked against what the manifest says of it."""
    if file is None:
        raise missing(path)
    digest = hashlib.sha256()
    look = digest.update if verify else len
    size = os.fstat(file.fileno()).st_size
    value: Any = None
    problem = ""
    try:
        if member.kind == "tensors":
            value = read_tensors(file, size, look)
        else:
            value = file.read()
            look(value)
            if member.kind != "blob":
                value = json.loads(value)
    except ValueError as error:
        problem = f"is damaged ({error})"
    if size != member.size:
        problem = f"is cut short or has grown: it has {size} bytes, {member.size} were written"
    elif verify and digest.hexdigest() != member.sha256:
        problem = "is damaged or was edited: its sha256 does not match the manifest's"
    if member.kind == "config":
        _check_version(path, value, f" (or the file {problem})" if problem else "")
    if problem:
        raise ModelFolderError(f"{path}: {problem}")
    return value
