"""The server: throughput and latency over loopback against the same scores in process.

    python benchmarks/server.py [--model DIR] [--clients 32] [--seconds 5] [--rounds 5] [--json]

32 connections, each with one request under way, ask a real server in a process of its own for the scores of
held-out rollouts. Both sides know every embedding already. In process, one thread scores batches of 32. The
two take turns, and what is reported is the median of the rounds, so that a machine that others use slows both
alike. The clients are lean (requests prepared, answers not decoded), but they take their share of the cores:
the ratio is what two cores sustain with the clients on them.
"""

# ruff: noqa: E402 (thread counts are read when numpy and FAISS load)

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np
import orjson

import valuegraph as vg
from valuegraph.payloads import score_records

DATA = Path(vg.__file__).parent / "data"
BATCH = 32


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    code = f"from valuegraph.server import serve; serve({str(folder)!r}, port=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                return
        raise RuntimeError("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def request(episodes: list[vg.Episode]) -> bytes:
    body = orjson.dumps({"episodes": [episode.to_dict() for episode in episodes]})
    head = "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode())
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    return await reader.readexactly(int(length[1]))


async def load(port: int, messages: list[bytes], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and how long each took; seconds = 0 sends every message once."""
    turn, times = count(), list[float]()
    start = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        while (n := next(turn)) < len(messages) or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            await ask(reader, writer, messages[n % len(messages)])
            times.append(time.perf_counter() - before)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(times) / (time.perf_counter() - start), times


def in_process(rm: vg.RewardModel, episodes: list[vg.Episode], seconds: float) -> float:
    """Rollouts a second."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        at = done % len(episodes)
        done += len(rm.score(episodes[at : at + BATCH]))
    return done / (time.perf_counter() - start)


async def first_answer(port: int, message: bytes) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    answer = orjson.loads(await ask(reader, writer, message))
    writer.close()
    return answer


def run(folder: Path, clients: int, per_request: int, seconds: float, rounds: int) -> dict[str, Any]:
    episodes = vg.read_episodes(DATA / "textworld_heldout.jsonl.gz")[: 4 * BATCH]
    groups = [episodes[i : i + per_request] for i in range(0, len(episodes), per_request)]
    messages = [request(group) for group in groups]
    rm = vg.RewardModel.load(folder)
    rm.score(episodes)
    with server(folder) as port:
        asyncio.run(load(port, messages, 4, 0))  # fills the cache
        same = asyncio.run(first_answer(port, messages[0])) == score_records(rm.score(groups[0]))
        local, remote, latencies = [], [], list[float]()
        for _ in range(rounds):
            local.append(in_process(rm, episodes, seconds))
            rate, times = asyncio.run(load(port, messages, clients, seconds))
            remote.append(rate * per_request)
            latencies += times
    ratios = np.array(remote) / np.array(local)
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    return {
        "clients": clients,
        "episodes_per_request": per_request,
        "in_process_per_s": float(np.median(local)),
        "server_per_s": float(np.median(remote)),
        "ratio": float(np.median(ratios)),
        "ratio_range": [float(ratios.min()), float(ratios.max())],
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "bit_equal": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a saved model; without it, one is fitted to packaged data"
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--per-request", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each side, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model
        if folder is None:
            folder = Path(temporary) / "model"
            train = vg.read_episodes(DATA / "textworld_train.jsonl.gz")
            vg.RewardModel.fit(train, config=vg.FitConfig(epochs=1), progress=False).save(folder)
        rows = [run(folder, args.clients, n, args.seconds, args.rounds) for n in args.per_request]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        low, high = row["ratio_range"]
        print(f"{row['clients']} clients, {row['episodes_per_request']} episodes a request")
        print(f"  rollouts/s: {row['server_per_s']:.0f}, in process {row['in_process_per_s']:.0f}")
        print(f"  ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}; target at least 0.60)")
        print(f"  p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms")
        print(f"  scores {'equal' if row['bit_equal'] else 'DIFFER'} bit for bit")


if __name__ == "__main__":
    main()
