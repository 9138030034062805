"""Kill a writer at random moments, again and again, and check that nothing it had promised is lost.

    python tests/faults/kill_loop.py --kills 200

The writer appends from several threads, snapshots and rotates as fast as it can, and says on a pipe what has
been acknowledged to it. It is a process, and SIGKILL is what ends it. While it lives, this process reads the
folder over and over, and must see a whole model with all that was acknowledged by then. Exit status 0 and a
line of JSON if so.
"""

import argparse
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from ledger import THREADS, Ledger, payload

from valuegraph.persistence import FolderWriter, read_folder, verify_folder

BATCH = 4
PHASES = ("opening", "appending", "snapshot")


def append_forever(log, thread: int, count: int, acknowledged: int, seed: int) -> None:
    rng = random.Random(seed + thread)
    while True:
        size = rng.choice((1, 1, 1, BATCH))
        log.append_many([payload(thread, count + i + 1) for i in range(size)])
        count += size
        os.write(acknowledged, b"%d %d\n" % (thread, count))


def write_until_killed(path: Path, acknowledged: int, phase: mmap.mmap, seed: int) -> None:
    rng = random.Random(seed)
    writer = FolderWriter(path)
    ledger = Ledger()
    if writer.snapshot_number:
        ledger = Ledger.of(read_folder(path))
    else:
        writer.snapshot(**ledger.contents())
    phase[0] = 1
    for thread in range(THREADS):
        arguments = (writer.log, thread, ledger.counts[thread], acknowledged, seed)
        threading.Thread(target=append_forever, args=arguments, daemon=True).start()
    ledger = Ledger(read_folder(path, verify=False).config["counts"])
    while True:
        time.sleep(rng.uniform(0, 0.02))
        through = writer.log.last_sequence
        for record in writer.log.replay(after=ledger.total):
            if record.sequence <= through:
                ledger.take(record.payload)
        phase[0] = 2
        writer.snapshot(**ledger.contents(), last_sequence=through)
        phase[0] = 1


def drain(source: int, acknowledged: list[int], rest: bytes = b"") -> bytes:
    """Bring `acknowledged` up to date with what the pipe holds; returns the incomplete line at its end."""
    with suppress(BlockingIOError):
        while data := os.read(source, 1 << 16):
            rest += data
    *lines, rest = rest.split(b"\n")
    for line in lines:
        thread, count = map(int, line.split())
        acknowledged[thread] = max(acknowledged[thread], count)
    return rest


def kill_one(path: Path, acknowledged: list[int], seed: int, longest: float) -> tuple[str, int]:
    """Start a writer, read beside it, kill it; returns what it was doing, and how often it was read."""
    phase = mmap.mmap(-1, 1)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        threading.excepthook = lambda _: (traceback.print_exc(), os._exit(3))
        try:
            write_until_killed(path, sink, phase, seed)
        except BaseException:
            traceback.print_exc()
        os._exit(3)
    os.close(sink)
    os.set_blocking(source, False)
    deadline = time.monotonic() + random.Random(seed).uniform(0.001, longest)
    reads, rest = 0, b""
    while (left := deadline - time.monotonic()) > 0:
        if (path / "manifest.json").exists():
            rest = drain(source, acknowledged, rest)
            ledger = Ledger.of(read_folder(path))
            assert all(map(int.__ge__, ledger.counts, acknowledged)), "a reader missed an acknowledged record"
            reads += 1
        time.sleep(min(left, 0.005))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), (
        f"the writer ended by itself with status {os.waitstatus_to_exitcode(status)}"
    )
    drain(source, acknowledged, rest)
    os.close(source)
    return PHASES[phase[0]], reads


def run(path: Path, kills: int, seed: int, longest: float) -> dict:
    acknowledged = [0] * THREADS
    phases: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    reads, started = 0, time.perf_counter()
    for kill in range(kills):
        phase, count = kill_one(path, acknowledged, seed + kill, longest)
        phases[phase] += 1
        reads += count
        findings = verify_folder(path)
        if not (path / "manifest.json").exists():
            assert not any(acknowledged), "acknowledged, and there is no model"
            seen["no model yet"] += 1
            continue
        assert not [f for f in findings if f.damage], findings
        folder = read_folder(path)
        ledger = Ledger.of(folder)
        for thread, promised in enumerate(acknowledged):
            extra = ledger.counts[thread] - promised
            assert extra >= 0, f"kill {kill}: {-extra} acknowledged records of thread {thread} are lost"
            assert extra <= BATCH, f"kill {kill}: {extra} records of thread {thread} appeared from nowhere"
        seen["files left staged"] += any(f.file.endswith(".staged") for f in findings)
        seen["torn tail"] += bool(folder.notices)
        seen["written, not yet acknowledged"] += ledger.counts != acknowledged
        acknowledged = ledger.counts
    with FolderWriter(path):
        pass
    assert verify_folder(path) == []
    folder = read_folder(path)
    assert Ledger.of(folder).counts == acknowledged
    return {
        "kills": kills,
        "during": dict(phases),
        "found": {what: count for what, count in seen.items() if count},
        "acknowledged": sum(acknowledged),
        "snapshots": folder.snapshot,
        "reads beside the writer": reads,
        "lost": 0,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.4, help="seconds a writer may live")
    parser.add_argument("--folder", type=Path, help="where (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = (arguments.folder or Path(scratch)) / "model"
        print(json.dumps(run(path, arguments.kills, arguments.seed, arguments.longest)))


if __name__ == "__main__":
    main()
