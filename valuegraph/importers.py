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
for `reward` is the step's. The goal is the field `goal`, else the first user message, or the prompt (its last
user message). Either can be named instead. `terminated`, `truncated` and `metadata` are taken where they are.
A row without `episode_id` is called after the source, the row number and a hash of what it says.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from valuegraph.conversations import as_rows, completion_turns, conversation_goal, prompt_goal
from valuegraph.conversations import split_steps as split_steps
from valuegraph.episodes import Consistency, Episode, EpisodeError, Step
from valuegraph.records import SUFFIXES, Located, counted, iter_records
from valuegraph.trajectories import (
    Columns,
    Record,
    column,
    flag,
    minari_dataset,
    minari_episodes,
    step_row_episodes,
)


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
        kind, rows = _format(*first), chain([first], records)
        if kind.convert is None:
            yield from step_row_episodes(rows, columns)
        else:
            yield from _convert(rows, kind.fields, kind.convert, columns, _name(file))


def recognises(record: Any) -> bool:
    """Whether a record has the fields of one of the formats above."""
    return isinstance(record, Mapping) and any(known.fits(record) for known in _FORMATS)


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


# Each format turns a row into one episode (or two)


def _canonical(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    known = {field: value for field, value in record.items() if value is not None}
    known["steps"] = _in_field("steps", as_rows, record["steps"])
    if columns.goal:
        known["goal"] = columns.goal_of(record)
    if columns.outcome:
        known["outcome"] = columns.outcome_of(record)
    yield Episode.from_dict(known)


def _chat(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    field = "messages" if "messages" in record else "conversations"
    messages = _in_field(field, as_rows, record[field])
    goal = columns.goal_of(record) or _in_field(field, conversation_goal, messages)
    yield _episode(record, name, field, messages, goal, columns.outcome_of(record))


def _completion(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    goal = columns.goal_of(record) or _in_field("prompt", prompt_goal, record["prompt"])
    yield _episode(record, name, "completion", record["completion"], goal, columns.outcome_of(record))


def _trl(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    if not columns.outcome and not any(usual in record for usual in columns.usual):
        rest = (field for field in record if field not in ("step", "prompt", "completion", "advantage"))
        rewards = [field for field in rest if record[field] is None or isinstance(record[field], Real)]
        if len(rewards) > 1:
            raise EpisodeError(f"outcome: one of {', '.join(rewards)}? Say which with outcome_column")
        columns = columns._replace(outcome=rewards[0] if rewards else None)
    yield from _completion(record, columns, name)


def _pair(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    goal = columns.goal_of(record)
    if goal is None and record.get("prompt") is not None:
        goal = _in_field("prompt", prompt_goal, record["prompt"])
    for field, outcome in (("chosen", 1.0), ("rejected", 0.0)):
        said, own_goal = record[field], goal
        if goal is None and not isinstance(said, str):
            own_goal = _in_field(field, conversation_goal, said)
        yield _episode(record, name, field, said, own_goal, outcome, suffix=f"/{field}")


def _episode(
    record: Record,
    name: str,
    field: str,
    said: Any,
    goal: str | None,
    outcome: float | None,
    suffix: str = "",
) -> Episode:
    turns = _in_field(field, completion_turns, said, goal)
    metadata, identity = record.get("metadata"), record.get("episode_id")
    if identity is None:
        # the hash tells apart files of one name from different runs, and knows the same file again
        identity = f"{name}:{hashlib.sha256(json.dumps([goal, turns]).encode()).hexdigest()[:8]}"
    return Episode(
        f"{identity}{suffix}",
        tuple(Step(observation, action) for action, observation in turns),
        goal=goal,
        outcome=outcome,
        terminated=flag(record, "terminated"),
        truncated=flag(record, "truncated"),
        metadata=metadata if isinstance(metadata, Mapping) else {},
    )


_Convert = Callable[[Record, Columns, str], Iterator[Episode]]


class _Format(NamedTuple):
    name: str
    fields: tuple[str, ...]
    convert: _Convert | None

    def fits(self, record: Record) -> bool:
        return all(field in record for field in self.fields)


_FORMATS = (
    _Format("episodes", ("steps",), _canonical),
    _Format("preference pairs", ("chosen", "rejected"), _pair),
    _Format("chat messages", ("messages",), _chat),
    _Format("chat messages", ("conversations",), _chat),
    _Format("TRL completions", ("prompt", "completion", "advantage"), _trl),
    _Format("prompt and completion", ("prompt", "completion"), _completion),
    _Format("step rows", ("episode_id", "observation"), None),
)


def _format(place: str, record: Any) -> _Format:
    known = next((f for f in _FORMATS if isinstance(record, Mapping) and f.fits(record)), None)
    if known is None:
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else f"{record!r:.60}"
        wanted = "; ".join(f"{', '.join(f.fields)} ({f.name})" for f in _FORMATS)
        raise EpisodeError(
            f"{place}: unknown format. Fields found: {found or 'none'}. Fields looked for: {wanted}"
        )
    return known


def _convert(
    rows: Iterable[Located], fields: Iterable[str], convert: _Convert, columns: Columns, name: str
) -> Iterator[tuple[str, Episode]]:
    for number, (place, record) in enumerate(rows, 1):
        try:
            for field in fields:
                column(record, field)
            episodes = list(convert(record, columns, f"{name}:{number}"))
        except EpisodeError as error:
            known = isinstance(record, Mapping) and convert is not _canonical and record.get("episode_id")
            episode = f"episode {known!r}: " if known else ""
            raise EpisodeError(f"{place}: {episode}{error}") from None
        yield from ((place, episode) for episode in episodes)


def _in_field(name: str, function: Callable, *arguments: Any) -> Any:
    """What the function returns; an error it raises is one of this field."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise EpisodeError(f"{name}{'' if str(error).startswith('[') else ': '}{error}") from None


# Sources


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
        yield from (_format(*located).name for located in islice(_records(file), 1))
