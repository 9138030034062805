"""Fit a reward model, serve it in a process of its own, and ask it for rewards as trainers do, over HTTP.

    python examples/serve_and_score.py

Needs `pip install valuegraph[server]`. In a shell, the server alone is `valuegraph serve DIR --port 8000`.
"""

import argparse
import contextlib
import json
import multiprocessing
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import valuegraph as vg
from valuegraph.server import serve

DATA = Path(vg.__file__).parent / "data"


def post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the model; it is stopped, gently, in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # spawned, not forked: a search index that has been used does not survive a fork
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(folder,), kwargs={"port": port, "log_level": "warning"}
    )
    process.start()
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz"):
                break
            if not process.is_alive():
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="treasure_hunter/4-104", help="the packaged game to learn from")
    args = parser.parse_args()
    train, heldout = (
        [e for e in vg.read_episodes(DATA / f"textworld_{part}.jsonl.gz") if e.metadata["task"] == args.task]
        for part in ("train", "heldout")
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        # judge by actions alone: a trainer of text sends what the policy said, and no world that answered
        vg.RewardModel.fit(train, config=vg.FitConfig(epochs=2, evidence="action")).save(folder)
        with served(folder) as url:
            print(f"\nserving {len(train)} episodes of {args.task} on {url}\n")

            answer = post(f"{url}/score", {"episodes": [rollout.to_dict() for rollout in heldout]})
            for rollout, row in zip(heldout, answer["scores"], strict=True):
                steps = " ".join(f"{reward:+.2f}" for reward in row["step_rewards"])
                print(f"outcome {rollout.outcome:.0f}, score {row['total']:.2f}, step by step {steps}")

            prompt = f"User: {heldout[0].goal}\nAssistant: "
            said = [
                "go north\n\ntake passkey",
                "take passkey\n\ngo north",
                "The passkey is taken. Yes, yes, yes.",
            ]
            batch = {"query": [prompt + text for text in said], "prompts": [prompt] * 3, "labels": [""] * 3}
            rewards = post(f"{url}/get_reward", batch)["rewards"]
            print("\nas OpenRLHF asks:")
            for text, reward in zip(said, rewards, strict=True):
                print(f"{reward:.2f} for {text!r}")

            report = post(f"{url}/update", {"episodes": [rollout.to_dict() for rollout in heldout]})
            print(f"\nremembered {report['episodes']} more, on disk: {report['durable']}")
        print(f"loaded again, the model knows {vg.RewardModel.load(folder).summary()['episodes']} episodes")


if __name__ == "__main__":
    main()
