"""Learn from chat logs with an outcome, then score chat logs without one.

    python examples/score_chat_logs.py                              # makes its logs from packaged episodes
    python examples/score_chat_logs.py --logs past.jsonl --new today.jsonl --out runs/rm0

Logs are JSON lines with `messages` in the form that OpenAI, Hugging Face and most agent frameworks write,
tool calls and tool results included. `score` (or `outcome`, `success`, `reward`, `label`) says how a log
ended; the new logs need none. The goal is the first user message.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import valuegraph as vg
from valuegraph.demo import demo_episodes
from valuegraph.importers import describe

CLAIM = "I have done everything you asked for. The task is complete!"


def main(arguments: Sequence[str] | None = None) -> vg.Scores:
    """Returns the scores of the new logs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=Path, help="logs to learn from; by default made of packaged episodes")
    parser.add_argument("--new", type=Path, help="logs to score; by default made of packaged episodes")
    parser.add_argument("--out", type=Path, help="where to save the reward model; by default nowhere")
    parser.add_argument("--epochs", type=int, default=8, help="of the fit (%(default)s)")
    parser.add_argument("--tasks", type=int, default=6, help="of the packaged episodes (%(default)s)")
    args = parser.parse_args(arguments)
    if (args.logs is None) != (args.new is None):
        parser.error("give both --logs and --new, or neither")

    with tempfile.TemporaryDirectory() as scratch:
        outcomes = None
        if args.logs is None:
            args.logs, args.new = Path(scratch) / "past.jsonl", Path(scratch) / "new.jsonl"
            outcomes = write_sample(args.logs, args.new, args.tasks)
        past, new = vg.read_episodes(args.logs), vg.read_episodes(args.new)
        print(describe(past, args.logs), describe(new, args.new), sep="\n")

    model = vg.RewardModel.fit(past, config=vg.FitConfig(epochs=args.epochs), progress=False)
    if args.out is not None:
        model.save(args.out)
    scores = model.score(new)
    order = np.argsort(-scores.total)
    print("\n total  ended well  got there  support  log")
    for i in [*order[:4], *order[-4:]]:
        print(
            f"{scores.total[i]:6.2f}{scores.terminal[i]:12.2f}{scores.instrumental[i]:11.2f}"
            f"{scores.support[i]:9.2f}  {scores.episode_ids[i]}"
        )
    if outcomes is not None:
        won = np.array(outcomes) > 0.5
        above = scores.total[won][:, None] > scores.total[~won]
        level = scores.total[won][:, None] == scores.total[~won]
        print(f"\na success outscores a failure in {np.mean(above + 0.5 * level):.1%} of the pairs")
    worst = new[order[-1]]
    claimed = vg.Episode("claim", (*worst.steps, vg.Step("", CLAIM)), goal=worst.goal)
    before, after = model.score([worst, claimed]).total
    print(f"the worst log scores {before:.2f}, and {after:.2f} once its agent claims success\n")
    print(model.explain(new[order[0]]))
    return scores


def write_sample(logs: Path, new: Path, tasks: int) -> list[float]:
    """Packaged episodes of text games as chat logs; returns the outcomes that the new logs do not tell."""
    train, held_out = demo_episodes()
    names = list(dict.fromkeys(episode.metadata["task"] for episode in held_out))
    chosen = {name for name in names if any(e.metadata["task"] == name for e in train)}
    chosen = set(sorted(chosen)[:: max(1, len(chosen) // tasks)][:tasks])
    train, held_out = ([e for e in part if e.metadata["task"] in chosen] for part in (train, held_out))
    write_lines(logs, ({"messages": as_messages(e), "score": e.outcome} for e in train))
    write_lines(new, ({"messages": as_messages(e)} for e in held_out))
    return [float(e.outcome) for e in held_out]


def as_messages(episode: vg.Episode) -> list[dict]:
    """What a log of the episode looks like: commands are tool calls, what the game says their results."""
    messages = [
        {"role": "system", "content": "You play a text game."},
        {"role": "user", "content": episode.goal},
    ]
    for i, step in enumerate(episode.steps):
        call = {"name": "play", "arguments": json.dumps({"command": step.action})}
        messages += [
            {"role": "assistant", "tool_calls": [{"id": str(i), "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": str(i), "content": step.observation},
        ]
    return messages


def write_lines(path: Path, records: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
