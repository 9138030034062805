"""The command line: `valuegraph fit`, `score`, `update`, `explain`, `inspect`, `recall`, `serve` and `demo`.

Results go to stdout, notes to stderr. What a person can put right ends in one line, `valuegraph: error: ...`,
and exit status 2; nothing is written or changed then.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuegraph.episodes import EpisodeError, read_episodes
from valuegraph.records import counted, replacing

if TYPE_CHECKING:
    from valuegraph.config import FitConfig
    from valuegraph.scoring import Scores


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # Before torch and FAISS are loaded: threads that wait would spin, and on a busy machine that makes a
    # search of a millisecond take a hundred.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = _parser().parse_args(argv)
    try:
        with _notes_on_stderr():
            return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"valuegraph: error: {' '.join(_reason(error).split())}", file=sys.stderr)
        return 2


def _reason(error: Exception) -> str:
    """Of an error of the system its file and what is wrong with it, without the number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


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
    _quiet_lightning()
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
        _note("no successful way is remembered, so that scores will say little")


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
        _note(
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

    _quiet_lightning()
    run_demo(args.out, _config(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="valuegraph", description="Dense rewards from whole episodes and their outcome alone."
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Any) -> argparse.ArgumentParser:
        about = run.__doc__.partition("\n")[0]
        added = commands.add_parser(run.__name__, help=about.partition(";")[0], description=about)
        added.set_defaults(run=run)
        return added

    def model_folder(of: argparse.ArgumentParser) -> None:
        of.add_argument("folder", metavar="DIR", type=Path, help="a saved model")

    def files(of: argparse.ArgumentParser, name: str, columns: bool) -> None:
        of.add_argument(
            name,
            metavar=name.upper(),
            nargs="+",
            type=Path,
            help=".jsonl, .json, .csv (each also .gz), .parquet, .arrow, or a folder: of such files, or "
            "what Hugging Face's save_to_disk or Minari wrote",
        )
        if columns:
            of.add_argument("--goal-column", metavar="C", help="the field that holds the goal")
            of.add_argument("--outcome-column", metavar="C", help="the field that holds the outcome")

    def settings(of: argparse.ArgumentParser) -> None:
        of.add_argument("--config", metavar="FILE.yaml", type=Path, help="settings of the fit, see configs/")
        of.add_argument("--seed", metavar="N", type=int, help="overrides the one in the config")

    of = command(fit)
    files(of, "episodes", columns=True)
    of.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the model is saved")
    settings(of)
    of.add_argument("--encoder", metavar="NAME", help="a sentence-transformers model, by name or folder")
    of.add_argument(
        "--ray", action="store_true", help="embed on the Ray cluster at RAY_ADDRESS, or on a local one"
    )

    of = command(score)
    model_folder(of)
    files(of, "rollouts", columns=False)
    of.add_argument("--out", metavar="FILE.jsonl", type=Path, help="write there, not to stdout")

    of = command(update)
    model_folder(of)
    files(of, "episodes", columns=True)

    of = command(explain)
    model_folder(of)
    files(of, "rollouts", columns=False)
    of.add_argument("--episode", metavar="ID", help="which rollout; needed where there are several")

    of = command(inspect)
    model_folder(of)
    of.add_argument("--json", action="store_true", help="as one JSON object")
    of.add_argument("--verify", action="store_true", help="check every checksum and every logged update")

    of = command(consolidate)
    model_folder(of)
    of.add_argument(
        "--nodes", metavar="N", type=_whole(1), help="keep at most so many; without it, forget none"
    )

    of = command(recall)
    model_folder(of)
    of.add_argument("observation", metavar="OBSERVATION", help="text, or a JSON list of numbers")
    of.add_argument("--goal", metavar="G")
    of.add_argument("--action", metavar="A", help="the action that led to the observation")
    of.add_argument("--steps", metavar="N", type=_whole(1), default=32, help="at most so many (%(default)s)")

    of = command(serve)
    model_folder(of)
    of.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (%(default)s); any but a loopback one needs a token in VALUEGRAPH_TOKEN",
    )
    of.add_argument("--port", type=_whole(0, 65_535), default=8000, help="(%(default)s; 0: any free one)")

    of = command(demo)
    of.add_argument("--out", metavar="DIR", type=Path, default=Path("valuegraph-demo"), help="(%(default)s)")
    settings(of)
    return parser


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Reads an option that is a whole number, no less than low and no more than high."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
        number = int(text)
        if number < low or (high is not None and number > high):
            wanted = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {number}")
        return number

    return read


def _version() -> str:
    from valuegraph import __version__

    return f"valuegraph {__version__}"


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


def _note(message: str) -> None:
    print(f"valuegraph: note: {message}", file=sys.stderr)


@contextmanager
def _notes_on_stderr() -> Iterator[None]:
    """A warning is one line for whoever runs a command; where in the code it arose is of no use to them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _note(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _quiet_lightning() -> None:
    """Hardware found, hardware not found and what else one might install: nothing that was asked for."""
    for package in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{package}.utilities.rank_zero").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
