"""Cut the power: of what was not yet synced, the disk holds what it likes.

    python tests/faults/power_cut.py --cuts 10

A killed process loses nothing it has written; a machine that loses power does. A `Disk` watches every call
that changes a model folder and knows what has been synced since. After each call, folders are laid out as a
disk may hold them then: every synced change, and of the others an arbitrary choice, writes torn or left as
holes. Each must be a whole model with all that was acknowledged by then. The same for a second writer that
follows one killed at some call. With `--careless` the library's syncs do nothing, and losses must show.
"""

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from crash_points import Life, check, live_on
from tripwire import tripwire

from valuegraph import durable, manifest, persistence, wal


class Disk:
    """What has reached the medium of one folder, and what may or may not have."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: dict[str, int] = {}  # names of files, as the living see them
        self.durable_names: dict[str, int] = {}
        self.data: list[bytearray] = []  # durable bytes of each file
        self.pending_names: list[dict[str, int | None]] = []  # None where a name goes
        self.pending_data: list[list[tuple]] = []
        self.files: dict[int, int] = {}  # which file an inode number means at present

    def watch(self, name, call, args):
        """Do the call, and note what it changes."""
        if name in ("write", "ftruncate"):
            file = self.files.get(os.fstat(args[0]).st_ino)
            change = (
                (os.lseek(args[0], 0, os.SEEK_CUR), bytes(args[1])) if name == "write" else (args[1], None)
            )
            done = call()
            if file is not None:
                self.pending_data[file].append(change)
            return done
        if name in ("fsync", "fdatasync"):
            done = call()
            self.synced(os.fstat(args[0]).st_ino)
            return done
        path = Path(args[0])
        exists = path.exists()
        done = call()
        if path.parent == self.folder and path.name != durable.LOCK:
            if name == "replace":
                self.rename({Path(args[1]).name: self.names[path.name], path.name: None})
            elif name == "unlink":
                self.rename({path.name: None})
            elif name == "open" and not exists:
                self.files[os.fstat(done).st_ino] = len(self.data)
                self.rename({path.name: len(self.data)})
                self.data.append(bytearray())
                self.pending_data.append([])
            elif name == "open" and args[1] & os.O_TRUNC:
                self.pending_data[self.files[os.fstat(done).st_ino]].append((0, None))
        return done

    def rename(self, change: dict[str, int | None]) -> None:
        self.pending_names.append(change)
        apply(self.names, change)

    def synced(self, inode: int) -> None:
        if inode == os.stat(self.folder).st_ino:
            self.durable_names = dict(self.names)
            self.pending_names.clear()
        elif (file := self.files.get(inode)) is not None:
            for change in self.pending_data[file]:
                write(self.data[file], *change)
            self.pending_data[file].clear()

    def after_a_cut(self, rng: random.Random) -> dict[str, bytes]:
        """The files that the folder may hold if the power goes now."""
        names = dict(self.durable_names)
        for change in self.pending_names:
            if rng.random() < 0.5:
                apply(names, change)
        files = {}
        for name, file in names.items():
            data = bytearray(self.data[file])
            for offset, new in self.pending_data[file]:
                fate = rng.choice(("kept", "lost", "torn", "hole"))
                if fate == "kept" or (fate != "lost" and new is None):
                    write(data, offset, new)
                elif fate == "torn":
                    write(data, offset, new[: rng.randint(0, len(new))])
                elif fate == "hole":
                    write(data, offset, bytes(len(new)))
            files[name] = bytes(data)
        return files


def apply(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, file in change.items():
        names.pop(name, None)
        if file is not None:
            names[name] = file


def write(data: bytearray, offset: int, new: bytes | None) -> None:
    """Put bytes at an offset, behind a hole if need be; None cuts the file off there."""
    if new is None:
        del data[offset:]
    else:
        data.extend(bytes(max(0, offset + len(new) - len(data))))
        data[offset : offset + len(new)] = new


class Death(BaseException):
    """The end of a process, as far as its disk can tell: it makes no more calls."""


class Run:
    """A life on a `Disk`, with power cuts after each call; or one that ends early, and another after it."""

    def __init__(self, folder: Path, cuts: int, rng: random.Random):
        folder.mkdir()
        self.disk, self.life, self.cuts, self.rng = Disk(folder), Life(folder), cuts, rng
        self.dies_at, self.acknowledged, self.past = None, 0, ""
        self.found: list[tuple[dict[str, bytes], int, str]] = []

    def trip(self, number, name, call, args):
        if self.dies_at and number >= self.dies_at:
            raise Death
        done = self.disk.watch(name, call, args)
        self.acknowledged = max(self.acknowledged, self.life.ledger.total)
        for _ in range(0 if self.dies_at else self.cuts):
            when = f"{self.past}after call {number}, {name}"
            self.found.append((self.disk.after_a_cut(self.rng), self.acknowledged, when))
        return done

    def live(self) -> int:
        """Returns the number of calls made."""
        calls = 0

        def trip(number, *rest):
            nonlocal calls
            calls = number
            return self.trip(number, *rest)

        with tripwire(trip):
            for step in self.life.steps():
                step()
        return calls

    def die_and_live(self, dies_at: int) -> None:
        self.dies_at = dies_at
        with suppress(Death):
            self.live()
        self.acknowledged = max(self.acknowledged, self.life.ledger.total)
        self.dies_at, self.past = None, f"died at call {dies_at}, came back, "
        self.life = Life(self.disk.folder)
        gc.collect()  # the dead hold no lock
        with tripwire(self.trip):
            for step in self.life.short():
                step()


def cut_everywhere(scratch: Path, cuts: int, careless: bool, seed: int) -> dict:
    if careless:
        for module in (durable, manifest, persistence, wal):
            for name in {"sync", "sync_folder"} & vars(module).keys():
                setattr(module, name, lambda _: None)
    rng = random.Random(seed)
    run = Run(scratch / "model", cuts, rng)
    found, calls = run.found, run.live()
    for dies_at in range(1, calls, max(1, 30 // cuts)):
        run = Run(scratch / f"model-{dies_at}", 1, rng)
        run.die_and_live(dies_at)
        found += run.found
    losses = []
    for number, (files, acknowledged, when) in enumerate(found):
        target = scratch / str(number)
        target.mkdir()
        for name, data in files.items():
            (target / name).write_bytes(data)
        try:
            check(target, acknowledged, acknowledged + 3)
            if number % 5 == 0:
                live_on(target)
        except (AssertionError, ValueError) as error:
            losses.append(f"{when}: {error}")
        shutil.rmtree(target)
    assert bool(losses) == careless, losses or "not even those who never sync are hurt by these power cuts"
    return {"calls": calls, "cuts": len(found), "losses": len(losses), "for example": losses[:3]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=10, help="power cuts after each call")
    parser.add_argument("--careless", action="store_true", help="do not sync: losses are expected")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        print(json.dumps(cut_everywhere(Path(scratch), arguments.cuts, arguments.careless, arguments.seed)))


if __name__ == "__main__":
    main()
