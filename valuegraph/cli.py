"""The command line: the options of `valuegraph fit`, `score` and the others, and one line for an error.

What the commands do is in `commands`. What a person can put right ends in `valuegraph: error: ...` and exit
status 2; nothing is written or changed then.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from valuegraph import commands
from valuegraph.commands import note


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="valuegraph", description="Dense rewards from whole episodes and their outcome alone."
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for run, options in _COMMANDS.items():
        about = (run.__doc__ or "").partition("\n")[0]
        of = added.add_parser(run.__name__, help=about.partition(";")[0], description=about)
        of.set_defaults(run=run)
        options(of)
    return parser


def _fit(of: argparse.ArgumentParser) -> None:
    _episodes(of)
    of.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the model is saved")
    _settings(of)
    of.add_argument("--encoder", metavar="NAME", help="a sentence-transformers model, by name or folder")
    of.add_argument(
        "--ray", action="store_true", help="embed on the Ray cluster at RAY_ADDRESS, or on a local one"
    )


def _score(of: argparse.ArgumentParser) -> None:
    _model(of)
    _files(of, "rollouts")
    of.add_argument("--out", metavar="FILE.jsonl", type=Path, help="write there, not to stdout")


def _update(of: argparse.ArgumentParser) -> None:
    _model(of)
    _episodes(of)


def _explain(of: argparse.ArgumentParser) -> None:
    _model(of)
    _files(of, "rollouts")
    of.add_argument("--episode", metavar="ID", help="which rollout; needed where there are several")


def _inspect(of: argparse.ArgumentParser) -> None:
    _model(of)
    of.add_argument("--json", action="store_true", help="as one JSON object")
    of.add_argument("--verify", action="store_true", help="check every checksum and every logged update")


def _consolidate(of: argparse.ArgumentParser) -> None:
    _model(of)
    of.add_argument(
        "--nodes", metavar="N", type=_whole(1), help="keep at most so many; without it, forget none"
    )


def _recall(of: argparse.ArgumentParser) -> None:
    _model(of)
    of.add_argument("observation", metavar="OBSERVATION", help="text, or a JSON list of numbers")
    of.add_argument("--goal", metavar="G")
    of.add_argument("--action", metavar="A", help="the action that led to the observation")
    of.add_argument("--steps", metavar="N", type=_whole(1), default=32, help="at most so many (%(default)s)")


def _serve(of: argparse.ArgumentParser) -> None:
    _model(of)
    of.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (%(default)s); any but a loopback one needs a token in VALUEGRAPH_TOKEN",
    )
    of.add_argument("--port", type=_whole(0, 65_535), default=8000, help="(%(default)s; 0: any free one)")


def _demo(of: argparse.ArgumentParser) -> None:
    of.add_argument("--out", metavar="DIR", type=Path, default=Path("valuegraph-demo"), help="(%(default)s)")
    _settings(of)


# Each command, in the order of `--help`, and what adds its options.
_COMMANDS: dict[Callable[[argparse.Namespace], int | None], Callable[[argparse.ArgumentParser], None]] = {
    commands.fit: _fit,
    commands.score: _score,
    commands.update: _update,
    commands.explain: _explain,
    commands.inspect: _inspect,
    commands.consolidate: _consolidate,
    commands.recall: _recall,
    commands.serve: _serve,
    commands.demo: _demo,
}


def _model(of: argparse.ArgumentParser) -> None:
    of.add_argument("folder", metavar="DIR", type=Path, help="a saved model")


def _files(of: argparse.ArgumentParser, name: str) -> None:
    of.add_argument(
        name,
        metavar=name.upper(),
        nargs="+",
        type=Path,
        help=".jsonl, .json, .csv (each also .gz), .parquet, .arrow, or a folder: of such files, or "
        "what Hugging Face's save_to_disk or Minari wrote",
    )


def _episodes(of: argparse.ArgumentParser) -> None:
    _files(of, "episodes")
    of.add_argument("--goal-column", metavar="C", help="the field that holds the goal")
    of.add_argument("--outcome-column", metavar="C", help="the field that holds the outcome")


def _settings(of: argparse.ArgumentParser) -> None:
    of.add_argument("--config", metavar="FILE.yaml", type=Path, help="settings of the fit, see configs/")
    of.add_argument("--seed", metavar="N", type=int, help="overrides the one in the config")


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


@contextmanager
def _notes_on_stderr() -> Iterator[None]:
    """A warning is one line for whoever runs a command; where in the code it arose is of no use to them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
