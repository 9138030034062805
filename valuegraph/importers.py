"""Everything that is not canonical JSON lines becomes `Episode`: chats, completions, pairs, tables, Minari.

What a file (`.jsonl`, `.json`, `.csv`, each also `.gz`, `.parquet`, `.arrow`) holds is told by the fields of
its first record; a folder is its files, or what Minari or Hugging Face's `save_to_disk` left there:

=====================  ============================================  ========================================
format                 fields                                        becomes
=====================  ============================================  ========================================
episodes               `steps`                                       the same episodes
preference pairs       `chosen`, `rejected`, optional `prompt`       two episodes, outcome 1 and 0
chat messages          `messages` or `conversations`                 a turn = action, its answer = observation
TRL completions        `prompt`, `completion`, `advantage`, rewards  one episode a row
prompt and completion  `prompt`, `completion`                        one episode a row
step rows              `episode_id`, `observation`, optional `t`     the rows of one id, in the order of `t`
=====================  ============================================  ========================================

The outcome is the first of `outcome`, `success`, `reward`, `score`, `label` that is not null, a bool or a
number in [0, 1]; of TRL completions else the one reward column; of step rows `outcome` or `success` alone,
for `reward` is the step's. `success` may not contradict `outcome`. The goal is the field `goal`, else the
first user message, or the prompt (its last user message). Either can be named instead. `terminated`,
`truncated` and `metadata` are taken where they are.
A row without `episode_id` is called after the source, the row number and a hash of what it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from valuegraph.conversations import split_steps as split_steps
from valuegraph.episodes import Consistency, Episode, EpisodeError
from valuegraph.formats import episodes_of, format_of
from valuegraph.formats import recognises as recognises
from valuegraph.records import SUFFIXES, Located, counted, iter_records
from valuegraph.trajectories import Columns, minari_dataset, minari_episodes


def import_episodes(
    source: Any, *, goal_column: str | None = None, outcome_column: str | None = None
) -> list[Episode]:
    """Episodes of a file, a folder of files, a Hugging Face or Minari dataset, or an iterable of records.

    Raises `EpisodeError` naming the source, the row, the episode and the field, and then returns nothing.
    """
    check, episodes = Consistency(), []
    for place, episode in iter_located(source, goal_column=goal_column, outcome_column=outcome_column):
        check.add(episode, place)
        episodes.append(episode)
    if not episodes:
        raise EpisodeError(f"{_name(source)}: holds no episode")
    return episodes


def iter_located(
    source: Any, *, goal_column: str | None = None, outcome_column: str | None = None
) -> Iterator[tuple[str, Episode]]:
    """Yield (place, episode), row by row; step rows alone are gathered first, for they may be interleaved."""
    if folder := _minari_folder(source):
        source = minari_dataset(folder)
    if hasattr(source, "iterate_episodes"):
        yield from minari_episodes(source)
        return
    columns = Columns(goal_column, outcome_column)
    for file in _files(source):
        records = _records(file)
        first = next(records, None)
        if first is None:
            continue
        kind, rows = format_of(*first), chain([first], records)
        yield from episodes_of(kind, rows, columns, _name(file))


def describe(episodes: Sequence[Episode], source: Any) -> str:
    """What was understood of a source, or list of files: formats, counts, outcomes, goals, the first goal."""
    sources = source if isinstance(source, list | tuple) and all(map(_is_path, source)) else [source]
    observation = episodes[0].steps[0].observation
    observed = (
        "text" if isinstance(observation, str) else f"vectors of {counted(len(observation), 'numbers')}"
    )
    outcomes = [e.outcome for e in episodes if e.outcome is not None]
    goals = [e.goal for e in episodes if e.goal is not None]
    total = f"{len(episodes):,}"
    names = (str(s) if _is_path(s) else _name(s) for s in sources)
    formats = dict.fromkeys(chain.from_iterable(map(_formats, sources)))
    lines = [
        f"{', '.join(names)}: {', '.join(formats)}",
        f"  {counted(len(episodes), 'episodes')}, {counted(sum(len(e.steps) for e in episodes), 'steps')}, "
        f"observations: {observed}",
        f"  outcomes: {len(outcomes):,} of {total}"
        + (f", mean {np.mean(outcomes):.3f}" if outcomes else "; if a column holds them, name it"),
        f"  goals: {len(goals):,} of {total}, {len(set(goals)):,} different",
    ]
    if goals:
        first = " ".join(goals[0].split())
        lines.append(f"  first goal: {first if len(first) <= 80 else first[:77] + '...'}")
    return "\n".join(lines)


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _minari_folder(source: Any) -> Path | None:
    """Where Minari saved a dataset, if the source is such a folder or the one around it."""
    for folder in (Path(source), Path(source) / "data") if _is_path(source) else ():
        notes = folder / "metadata.json"
        noted = notes.is_file() and b"minari_version" in notes.read_bytes()
        if noted or (folder / "main_data.hdf5").is_file():
            return folder
    return None


def _files(source: Any) -> list[Any]:
    if not _is_path(source) or not Path(source).is_dir():
        return [source]
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(split) for split in folder.iterdir() if split.is_dir()))
        raise EpisodeError(f"{folder}: a dataset in several splits; pass one of them: {splits or 'none'}")
    # beside its tables a saved Hugging Face dataset keeps notes about them
    suffixes = ".arrow" if (folder / "dataset_info.json").is_file() else SUFFIXES
    return sorted(file for file in folder.iterdir() if file.name.endswith(suffixes))


def _records(source: Any) -> Iterator[Located]:
    if _is_path(source):
        yield from iter_records(source)
    elif isinstance(source, Mapping):
        raise EpisodeError(
            f"a dict of {', '.join(map(str, source))}: pass one of them (one split of a dataset)"
        )
    elif isinstance(source, bytes) or not isinstance(source, Iterable):
        raise EpisodeError(f"source: must be a path, a dataset or records, not {source!r:.60}")
    else:
        # a Hugging Face dataset may be set to hand out arrays or tensors; its plain rows are wanted here
        rows = source.with_format(None) if hasattr(source, "with_format") else source
        yield from ((f"{_name(source)}, row {number}", record) for number, record in enumerate(rows, 1))


def _name(source: Any) -> str:
    if _is_path(source):
        return Path(source).name.removesuffix(".gz").rpartition(".")[0] or Path(source).name
    return str(getattr(source, "id", None) or getattr(source, "builder_name", None) or "dataset")


def _formats(source: Any) -> Iterator[str]:
    if _minari_folder(source) or hasattr(source, "iterate_episodes"):
        yield "Minari dataset"
        return
    for file in _files(source):
        yield from (format_of(*located).name for located in islice(_records(file), 1))
