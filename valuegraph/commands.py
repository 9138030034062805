"""What each command of the command line does: files in, a model or scores out.

Results go to stdout, notes to stderr. A command raises `ValueError`, `OSError` or `ImportError` for what a
person can put right, and has written and changed nothing then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuegraph.episodes import EpisodeError, read_episodes
from valuegraph.records import counted, replacing

if TYPE_CHECKING:
    from valuegraph.config import FitConfig
    from valuegraph.scores import Scores


def fit(args: argparse.Namespace) -> None:
    """Learn from episodes and save the model; the folder is written once everything has gone well."""
    started = time.perf_counter()
    _check_target(args.out)
    config = _config(args)
    episodes = read_episodes(*args.episodes, goal_column=args.goal_column, outcome_column=args.outcome_column)

    from valuegraph.encoders import TextEncoder
    from valuegraph.importers import describe
    from valuegraph.reward_model import RewardModel

    print(describe(episodes, args.episodes), flush=True)
    encoder = TextEncoder(args.encoder) if args.encoder else None
    learn: Any = RewardModel.fit
    if args.ray:
        from valuegraph.ray_fit import fit_on_ray as learn
    with _about(args.episodes):
        model = learn(episodes, encoder, config, progress=sys.stdout.isatty())
    model.save(args.out)
    sizes = model.summary()
    weights = f", weights from {model.encoder.source}" if isinstance(model.encoder, TextEncoder) else ""
    print(f"encoder: {model.encoder.id}{weights}")
    print(
        f"memory: {counted(sizes['nodes'], 'nodes')}, {counted(sizes['edges'], 'edges')}, "
        f"{counted(sizes['paths'], 'successful ways')} to {counted(sizes['goals'], 'goals')}"
    )
    print(f"saved to {args.out} after {time.perf_counter() - started:.0f} s")
    if not sizes["paths"]:
        note("no successful way is remembered, so that scores will say little")


def score(args: argparse.Namespace) -> None:
    """Score rollouts, one JSON object a line, in their order."""
    rollouts = read_episodes(*args.rollouts)

    from valuegraph.explain import FAR

    with _load(args.folder) as model, _about(args.rollouts):
        scores = model.score(rollouts)
    lines = [json.dumps(line, ensure_ascii=False, allow_nan=False) for line in _lines(scores)]
    text = "\n".join(lines) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        with replacing(args.out) as out:
            out.write(text.encode())
    far = [name for name, near in zip(scores.episode_ids, scores.support, strict=True) if near < FAR]
    if far:
        note(
            f"{len(far)} of {len(scores)} rollouts are far from everything remembered (support below {FAR}), "
            f"so their scores are little more than guesses: {_some(far)}"
        )


def update(args: argparse.Namespace) -> None:
    """Write episodes into a saved model; returns once they are on disk."""
    episodes = read_episodes(*args.episodes, goal_column=args.goal_column, outcome_column=args.outcome_column)
    with _load(args.folder) as model, _about(args.episodes):
        report = model.update(episodes)
    if not report.durable:
        raise OSError(f"{args.folder}: the update could not be made durable")
    print(
        f"{args.folder}: {counted(report.episodes, 'episodes')} written, "
        f"{counted(report.new_nodes, 'new nodes')}, {counted(report.new_edges, 'new edges')}"
    )


def explain(args: argparse.Namespace) -> None:
    """Say in English why one rollout scores what it scores."""
    rollouts = {rollout.episode_id: rollout for rollout in read_episodes(*args.rollouts)}
    wanted = args.episode
    if wanted is None and len(rollouts) == 1:
        wanted = next(iter(rollouts))
    if wanted not in rollouts:
        problem = "say which with --episode" if wanted is None else f"no episode {wanted!r} here"
        raise EpisodeError(f"{_files(args.rollouts)}: {problem}; there is {_some(list(rollouts))}")
    with _load(args.folder) as model, _about(args.rollouts):
        print(model.explain(rollouts[wanted]))


def inspect(args: argparse.Namespace) -> int:
    """Sizes and provenance of a saved model; with --verify, whether every byte is as it was written."""
    from valuegraph.persistence import FORMAT_VERSION, verify_folder

    if args.verify:
        findings = verify_folder(args.folder)
        for finding in findings:
            print(f"valuegraph: {'error' if finding.damage else 'note'}: {finding.problem}", file=sys.stderr)
        if any(finding.damage for finding in findings):
            return 2
    with _load(args.folder) as model:
        facts = model.summary() | {"recall_at_16": round(model.index_recall(), 4)}
        facts |= {"format_version": FORMAT_VERSION, "fit": model.config.to_dict()}
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    facts["fit"] = ", ".join(f"{name}={value}" for name, value in facts["fit"].items())
    for name, value in facts.items():
        print(f"{name:15} {value:,}" if type(value) is int else f"{name:15} {value}")
    if args.verify:
        print("every checksum is right")
    return 0


def consolidate(args: argparse.Namespace) -> None:
    """Tidy a saved model up: merge near-duplicates, forget down to a number of nodes, replay what is left."""
    with _load(args.folder) as model:
        report = model.consolidate(args.nodes)
    print(
        f"{args.folder}: {counted(report.merged, 'nodes')} merged, {report.pruned:,} forgotten, "
        f"{counted(report.nodes, 'nodes')} and {counted(report.edges, 'edges')} left"
    )


def recall(args: argparse.Namespace) -> None:
    """Print the remembered way from an observation to a goal, with the value of each step."""
    observation = args.observation
    with _load(args.folder) as model:
        from valuegraph.encoders import ArrayEncoder
        from valuegraph.episodes import Step

        if isinstance(model.encoder, ArrayEncoder):
            try:
                observation = Step(json.loads(observation)).observation
            except ValueError as error:
                raise ValueError(f"OBSERVATION: expected a JSON list of numbers ({error})") from None
        print(model.recall(observation, args.goal, action=args.action, steps=args.steps))


def serve(args: argparse.Namespace) -> None:
    """Serve a saved model over HTTP until interrupted."""
    from valuegraph.server import serve as serve_folder

    serve_folder(args.folder, host=args.host, port=args.port)


def demo(args: argparse.Namespace) -> None:
    """Fit, score, explain and recall on real text games that come with the package."""
    from valuegraph.demo import run_demo

    run_demo(args.out, _config(args))


def _load(folder: Path) -> Any:
    from valuegraph.reward_model import RewardModel

    return RewardModel.load(folder)


def _config(args: argparse.Namespace) -> FitConfig:
    from valuegraph.config import FitConfig

    config = FitConfig.from_file(args.config) if args.config else FitConfig()
    return config if args.seed is None else replace(config, seed=args.seed)


def _check_target(out: Path) -> None:
    """Raise, before anything is learned, if there is something else than a model where one is to be saved."""
    from valuegraph.durable import LOCK, ModelFolderError
    from valuegraph.manifest import LOG, read_manifest

    # A log by itself is what a first save leaves that did not get through.
    if out.is_dir() and any(file.name not in (LOG, LOCK) for file in out.iterdir()):
        try:
            read_manifest(out)
        except ModelFolderError as error:
            raise ModelFolderError(f"{error}; name a folder that is new, or empty") from error
    elif out.exists() and not out.is_dir():
        raise ModelFolderError(f"{out}: is a file; a model is saved in a folder")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ModelFolderError(f"{out}: cannot be written: {there} is not a folder that may be written in")


def _lines(scores: Scores) -> Iterator[dict[str, Any]]:
    for i, episode_id in enumerate(scores.episode_ids):
        yield {
            "episode_id": episode_id,
            "total": float(scores.total[i]),
            "terminal": float(scores.terminal[i]),
            "instrumental": float(scores.instrumental[i]),
            "support": float(scores.support[i]),
            "step_rewards": scores.step_rewards[i].tolist(),
        }


@contextmanager
def _about(files: Sequence[Path]) -> Iterator[None]:
    """Errors about episodes name the files that these came from."""
    try:
        yield
    except EpisodeError as error:
        raise EpisodeError(f"{_files(files)}: {error}") from error


def _files(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def note(message: str) -> None:
    """Tell whoever runs a command what is worth knowing and no error."""
    print(f"valuegraph: note: {message}", file=sys.stderr)
