"""Episodes together: read from files and written to them, and what must hold across them.

A file in the canonical form, JSON lines, holds one episode a line, see `valuegraph.episode`.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from valuegraph.episode import Episode, EpisodeError, Observation, Step, check_goal, shape_of, shown
from valuegraph.records import PathLike, iter_records, replacing

__all__ = [
    "Consistency",
    "Episode",
    "EpisodeError",
    "Observation",
    "Step",
    "as_episodes",
    "check_episodes",
    "check_goal",
    "iter_episodes",
    "read_episodes",
    "write_episodes",
]


def read_episodes(
    path: PathLike, *more: PathLike, goal_column: str | None = None, outcome_column: str | None = None
) -> list[Episode]:
    """Every episode of one or more files (or folders of files), in order.

    `.jsonl` and `.jsonl.gz` in the canonical form are read here, line by line; everything else, and named
    columns, are the business of `valuegraph.importers`, whose `import_episodes` also reads what is no file.
    Raises `EpisodeError` (file, line, episode, field) and then returns nothing.
    """
    return list(iter_episodes(path, *more, goal_column=goal_column, outcome_column=outcome_column))


def iter_episodes(
    path: PathLike, *more: PathLike, goal_column: str | None = None, outcome_column: str | None = None
) -> Iterator[Episode]:
    """As `read_episodes`, one episode at a time, for files larger than memory."""
    check = Consistency()
    for file in (path, *more):
        _check_path(file)
        empty = True
        for place, episode in _located_episodes(file, goal_column, outcome_column):
            check.add(episode, place)
            empty = False
            yield episode
        if empty:
            raise EpisodeError(f"{file}: holds no episode")


def write_episodes(episodes: Iterable[Episode], path: PathLike) -> None:
    """Write canonical `.jsonl` or `.jsonl.gz`: the whole file appears at once, or not at all.

    The same episodes give the same bytes. Raises `EpisodeError` where the file could not be read back: no
    episode, a repeated `episode_id`, text mixed with vectors.
    """
    _check_path(path)
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise EpisodeError(f"{path}: episodes are written to .jsonl or .jsonl.gz")
    check, count = Consistency(), 0
    with replacing(path) as raw:
        # no file name and no time in the gzip header, so equal episodes give equal bytes
        out: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
        for count, episode in enumerate(_each(episodes, "episodes"), 1):
            check.add(episode, f"{path}, line {count}")
            line = json.dumps(episode.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            out.write(line.encode() + b"\n")
        if not count:
            raise EpisodeError(f"{path}: no episode to write")
        if out is not raw:
            out.close()


def _check_path(path: Any) -> None:
    if isinstance(path, str | os.PathLike):
        return
    hint = ""
    if isinstance(path, list | tuple) and all(isinstance(one, str | os.PathLike) for one in path):
        hint = "; several are passed one by one"
    elif isinstance(path, Iterable) and not isinstance(path, bytes):
        hint = "; `valuegraph.importers.import_episodes` reads records and datasets"
    raise EpisodeError(f"path: must be the path of a file or folder, not {shown(path)}{hint}")


def _located_episodes(
    path: PathLike, goal_column: str | None, outcome_column: str | None
) -> Iterator[tuple[str, Episode]]:
    # imported late: the importers stand on this module, and canonical files do not need them
    if goal_column or outcome_column or not str(path).endswith((".jsonl", ".jsonl.gz")):
        from valuegraph.importers import iter_located

        yield from iter_located(path, goal_column=goal_column, outcome_column=outcome_column)
        return
    records = iter_records(path)
    first = next(records, None)
    if first and isinstance(first[1], Mapping) and "steps" not in first[1]:
        from valuegraph.importers import iter_located, recognises

        if recognises(first[1]):
            yield from iter_located(path)
            return
    for place, record in chain([first] if first else [], records):
        yield place, Episode.from_dict(record, where=place)


def as_episodes(episodes: Any, name: str = "episodes") -> list[Episode]:
    """A list of what was handed over as episodes; raises `EpisodeError` where it is something else."""
    return list(_each(episodes, name))


def _each(episodes: Any, name: str) -> Iterator[Episode]:
    if isinstance(episodes, str | os.PathLike):
        raise EpisodeError(f"{name}: a path, not episodes; `read_episodes({str(episodes)!r})` reads them")
    if isinstance(episodes, Episode | Mapping) or not isinstance(episodes, Iterable):
        raise EpisodeError(f"{name}: must be a list of Episode, not {shown(episodes)}")
    for i, episode in enumerate(episodes):
        if not isinstance(episode, Episode):
            hint = "; `Episode.from_dict` makes one" if isinstance(episode, Mapping) else ""
            raise EpisodeError(f"{name}[{i}]: must be an Episode, not {shown(episode)}{hint}")
        yield episode


def check_episodes(episodes: Iterable[Episode], source: str = "episodes") -> None:
    """Raise `EpisodeError` unless ids are unique and observations all text, or all vectors of one width."""
    check = Consistency()
    for i, episode in enumerate(episodes):
        check.add(episode, f"{source}[{i}]")


class Consistency:
    """What must hold across episodes: unique ids, one kind of observation, one vector width."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._first: tuple[str, str] | None = None

    def add(self, episode: Episode, where: str) -> None:
        """Take in one more; raises `EpisodeError`, naming both places, where it does not fit the others."""
        earlier = self._seen.get(episode.episode_id)
        if earlier is not None:
            raise EpisodeError(f"{where}: episode_id: {episode.episode_id!r} was already used at {earlier}")
        self._seen[episode.episode_id] = where
        shape = shape_of(episode.steps[0].observation)
        first_shape, first_where = self._first = self._first or (shape, where)
        if shape != first_shape:
            raise EpisodeError(
                f"{where}: episode {episode.episode_id!r}: steps[0].observation: {shape}, "
                f"but the episodes before it, from {first_where}, have {first_shape}"
            )
