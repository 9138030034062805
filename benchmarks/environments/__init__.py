"""Recorded episodes of public environments, each with its truth; the splits share no task.

    python -m benchmarks.environments textworld minigrid --out data

writes `data/<environment>/<split>.jsonl.gz`. The same package versions give the same bytes. Fit on `train`,
decide on `dev`, and report on `test` once. `spent` are earlier tests, for decisions now.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from examples.make_demo_data import record, write_records

MODULES = {
    "textworld": "textworld_games",
    "minigrid": "minigrid_text",
    "scienceworld": "scienceworld_tasks",
    "crafter": "crafter_text",
}
SPLITS = ("train", "dev", "spent", "test")


def make(environment: str, split: str, path: Path) -> None:
    """`record_split` in a process of its own.

    A simulator may draw from one stream as long as its process lives, and what was played before would show.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        alone.submit(record_split, environment, split, path).result()


def record_split(environment: str, split: str, path: Path) -> None:
    """Play the tasks of a split and write the episodes, truth beside each, to `path` (.jsonl.gz)."""
    module = import_module(f"{__name__}.{MODULES[environment]}")  # each needs a package of its own
    records = [record(*played) for played in module.episodes(split)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    write_records(records, draft)
    draft.replace(path)


def ensure(environment: str, split: str, folder: Path) -> Path:
    """The file of a split, made first if it is not there."""
    path = folder / environment / f"{split}.jsonl.gz"
    if not path.exists():
        make(environment, split, path)
    return path
