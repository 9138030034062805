"""What an operating system can promise: bytes that stay written, names that stay changed, one writer."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

Payload = bytes | bytearray | memoryview
BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it
LOCK = "writer.lock"


class ModelFolderError(ValueError):
    """A folder that is not a sound model; the message names the folder, the file and what is wrong."""


class FolderBusyError(ModelFolderError):
    """Somebody else is writing the folder; the message says who, where and since when."""


def write_all(fd: int, data: Payload) -> None:
    """Write every byte at the descriptor's position: one `os.write` may take fewer than it was given."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def read_into(file: BinaryIO, view: memoryview) -> int:
    """Fill the view from an unbuffered file; returns the bytes there were, fewer only at the file's end."""
    filled = 0
    while filled < len(view) and (count := file.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled


def sync(fd: int) -> None:
    """Return once a file's bytes, and the size needed to read them, are on the medium."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync leaves them in the drive's cache there
    else:
        getattr(os, "fdatasync", os.fsync)(fd)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, which a rename alone is not (Windows offers no way)."""
    if os.name == "posix":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably. Raises `ModelFolderError` if there is a file in the way."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ModelFolderError(f"{path}: is not a folder, or lies below something that is not") from error
    for folder in missing:
        sync_folder(folder.parent)


class WriterLock:
    """The right to write a folder: one holder, until `release`, garbage collection or its death.

    The operating system locks `writer.lock`, so a dead writer leaves nothing that must be cleared away; the
    text in it says who holds it, and it goes when the lock does. A fork does not inherit the right. Raises
    `FolderBusyError` if somebody holds it, this process included.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / LOCK
        self.fd = self._acquire()
        self.release = weakref.finalize(self, _release, self.fd, self.path)
        _forget_in_forks(self)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()
        with suppress(OSError):  # a courtesy to whoever comes second; the lock is held without it
            write_all(self.fd, owner)
            os.ftruncate(self.fd, len(owner))

    def _acquire(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
            try:
                if not _try_lock(fd):
                    raise FolderBusyError(self._busy())
                # Its last holder may have removed the file between the two calls: then this locks nothing.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _busy(self) -> str:
        owner: dict[str, str | int] = {}
        for _ in range(20):  # the holder may not have signed yet
            with suppress(ValueError, FileNotFoundError):
                owner = json.loads(self.path.read_bytes())
                break
            time.sleep(0.005)
        pid, host, since = (owner.get(key, "unknown") for key in ("pid", "host", "since"))
        mine = " (this very process)" if (pid, host) == (os.getpid(), socket.gethostname()) else ""
        return (
            f"{self.path.parent}: is being written by process {pid}{mine} on {host} since {since}; "
            "a model folder has one writer at a time"
        )

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(fd, 1 << 30, os.SEEK_SET)  # far behind the text, which others must be able to read
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _release(fd: int, path: Path) -> None:
    try:
        with suppress(OSError):
            os.unlink(path)  # still locked, so nobody else can be holding it
    finally:
        os.close(fd)


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()
_watching_forks = False


def _forget_in_forks(lock: WriterLock) -> None:
    """A forked child shares the lock and would keep it alive after its parent: let it drop its share."""
    global _watching_forks
    _held.add(lock)
    if not _watching_forks and hasattr(os, "register_at_fork"):
        _watching_forks = True
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for lock in _held:
        if lock.release.detach():
            os.close(lock.fd)
