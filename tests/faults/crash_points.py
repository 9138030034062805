"""Go through the life of a model folder once for every call to the operating system, and spoil that one call.

    python tests/faults/crash_points.py die     # the process ends halfway through it or just after it
    python tests/faults/crash_points.py fail    # it fails, once or until the disk has room, and life goes on

Exit status 0 and a line of JSON if nothing acknowledged was ever lost and nothing else ever appeared.
"""

import argparse
import errno
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from ledger import Ledger, payload
from tripwire import tripwire

from valuegraph.persistence import FolderWriter, read_folder, verify_folder


class Life:
    """A writer's life in steps that can be repeated: each does what is still to be done, or raises."""

    def __init__(self, path: Path, acknowledge=lambda total: None):
        self.path, self.acknowledge = path, acknowledge
        self.ledger = Ledger()  # all that was acknowledged
        self.writer = None

    def open(self):
        self.writer = FolderWriter(self.path)
        if self.writer.snapshot_number:
            self.ledger = Ledger.of(read_folder(self.path))

    def snapshot(self, keep=0):
        ledger = Ledger([self.ledger.total - keep, 0, 0])
        self.writer.snapshot(**ledger.contents(), last_sequence=ledger.total)

    def append(self, size=1):
        records = [payload(0, self.ledger.total + i + 1) for i in range(size)]
        assert self.writer.log.append_many(records)[-1] == self.ledger.total + size
        for record in records:
            self.ledger.take(record)
        self.acknowledge(self.ledger.total)

    def close(self):
        self.writer.close()

    def steps(self):
        yield from (self.open, self.snapshot, self.append, lambda: self.append(3), self.snapshot, self.append)
        yield from (
            self.append,
            lambda: self.snapshot(keep=1),
            self.append,
            self.close,
            self.open,
            self.append,
        )
        yield from (self.snapshot, self.close)

    def short(self):
        """A life that goes on from whatever there is."""
        yield self.open
        yield from (self.append, self.snapshot) if self.writer.snapshot_number else (self.snapshot,)
        yield from (self.append, self.close)


def check(path: Path, acknowledged: int, at_most: int) -> None:
    """The folder is whole and holds what was acknowledged, and no more than was being written besides."""
    if not (path / "manifest.json").exists():
        assert acknowledged == 0, "acknowledged, and there is no model"
        return
    total = Ledger.of(read_folder(path)).total
    assert acknowledged <= total <= at_most, f"acknowledged {acknowledged}, found {total}"
    assert not [finding for finding in verify_folder(path) if finding.damage]


def live_on(path: Path) -> None:
    """A new writer can go on from whatever a crash has left, and leaves no litter."""
    life = Life(path)
    for step in life.short():
        step()
    assert verify_folder(path) == []
    assert not [name for name in os.listdir(path) if name.startswith(".")]
    assert Ledger.of(read_folder(path)).counts == life.ledger.counts


def calls_in_a_life(scratch: Path) -> list[str]:
    names = []

    def count(number, name, call, args):
        names.append("open to read" if name == "open" and not args[1] & os.O_CREAT else name)
        return call()

    with tripwire(count):
        for step in Life(scratch / "whole").steps():
            step()
    return names


def die(path: Path, number: int, how: str) -> int:
    """Live until call `number`, in a process of its own, and end there; returns what was acknowledged."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        real_write = os.write

        def trip(count, name, call, args):
            if count < number:
                return call()
            call(half=how == "halfway")
            os._exit(9)

        try:
            with tripwire(trip):
                for step in Life(path, lambda total: real_write(sink, bytes([total]))).steps():
                    step()
        except BaseException:
            traceback.print_exc()
        os._exit(3)
    os.close(sink)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9, "the call was never made"
    with open(source, "rb") as acknowledged:
        return max(acknowledged.read(), default=0)


def die_everywhere(scratch: Path, stride: int) -> dict:
    calls = calls_in_a_life(scratch)
    tried = Counter()
    for number in range(1, len(calls) + 1, stride):
        # Just before a call is just after the one before it.
        for how in {"write": ("halfway", "after"), "open to read": ()}.get(calls[number - 1], ("after",)):
            path = scratch / f"{number}-{how}"
            acknowledged = die(path, number, how)
            check(path, acknowledged, acknowledged + 3)
            # The recovery dies too, at its first call, its second, and so on.
            for again in range(1, 12) if number % 6 == 0 else ():
                acknowledged = max(acknowledged, die(path, again, "after"))
                check(path, acknowledged, acknowledged + 3)
            live_on(path)
            tried[calls[number - 1]] += 1
    return {"calls": len(calls), "deaths at": dict(tried)}


def fail(path: Path, number: int, code: int, stays_full: bool) -> int:
    """Live a whole life in which call `number` fails; a step that fails for it is repeated when it works."""
    broken, refused = False, 0

    def trip(count, name, call, args):
        nonlocal broken  # `stays_full` is turned off below, when the disk has room again
        broken = broken or count == number
        needs_room = name in ("write", "fsync", "fdatasync", "mkdir") or (
            name == "open" and args[1] & os.O_CREAT
        )
        if count == number or (broken and stays_full and needs_room):
            if name == "write":
                call(half=True)
            raise OSError(code, os.strerror(code))
        return call()

    life = Life(path)
    with tripwire(trip):
        for step in life.steps():
            failure = None
            try:
                step()
            except OSError as error:
                failure = error
            if failure:
                assert failure.errno == code, failure
                refused += 1
                stays_full = False
                check(path, life.ledger.total, life.ledger.total)
                step()
    check(path, life.ledger.total, life.ledger.total)
    live_on(path)
    return refused


def fail_everywhere(scratch: Path, stride: int) -> dict:
    calls = calls_in_a_life(scratch)
    tried, refused = Counter(), 0
    for number in range(1, len(calls) + 1, stride):
        for code in (errno.ENOSPC, errno.EIO):
            for stays_full in (False, True):
                path = scratch / f"{number}-{code}-{stays_full}"
                refused += fail(path, number, code, stays_full)
                tried[calls[number - 1]] += 1
    return {"calls": len(calls), "failures of": dict(tried), "refusals": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("die", "fail"))
    parser.add_argument("--stride", type=int, default=1, help="try every so-manieth call")
    arguments = parser.parse_args()
    # In memory where that can be had: a process that dies loses nothing it has written, synced or not.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        sweep = die_everywhere if arguments.what == "die" else fail_everywhere
        print(json.dumps(sweep(Path(scratch), arguments.stride)))


if __name__ == "__main__":
    main()
