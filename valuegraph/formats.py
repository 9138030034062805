"""The formats that are listed in `importers`: how one is recognised, and how its rows become episodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

from valuegraph.conversations import as_rows, completion_turns, conversation_goal, prompt_goal
from valuegraph.episode import check_success
from valuegraph.episodes import Episode, EpisodeError, Step
from valuegraph.records import Located
from valuegraph.trajectories import Columns, Record, column, flag, step_row_episodes

__all__ = ["Format", "episodes_of", "format_of", "recognises"]


def _canonical(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    known = {field: value for field, value in record.items() if value is not None}
    known["steps"] = _in_field("steps", as_rows, record["steps"])
    if columns.goal:
        known["goal"] = columns.goal_of(record)
    if columns.outcome:
        known["outcome"] = columns.outcome_of(record)
        known.pop("success", None)  # the named column alone says how it ended
    yield Episode.from_dict(known)


def _chat(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    field = "messages" if "messages" in record else "conversations"
    messages = _in_field(field, as_rows, record[field])
    goal = columns.goal_of(record) or _in_field(field, conversation_goal, messages)
    yield _episode(record, name, field, messages, goal, _outcome(record, columns))


def _completion(record: Record, columns: Columns, name: str) -> Iterator[Episode]:
    goal = columns.goal_of(record) or _in_field("prompt", prompt_goal, record["prompt"])
    yield _episode(record, name, "completion", record["completion"], goal, _outcome(record, columns))


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


def _outcome(record: Record, columns: Columns) -> float | None:
    if not columns.outcome:
        check_success(record.get("outcome"), record.get("success"))
    return columns.outcome_of(record)


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


def _in_field(name: str, function: Callable, *arguments: Any) -> Any:
    """What the function returns; an error it raises is one of this field."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise EpisodeError(f"{name}{'' if str(error).startswith('[') else ': '}{error}") from None


class Format(NamedTuple):
    """A kind of row."""

    name: str
    fields: tuple[str, ...]
    """Those that tell it, and every row must have."""
    convert: Callable[[Record, Columns, str], Iterator[Episode]] | None
    """A row, the columns and a name for it, to episodes; None where an episode is several rows."""

    def fits(self, record: Record) -> bool:
        """Whether a record has its fields."""
        return all(field in record for field in self.fields)


_FORMATS = (
    Format("episodes", ("steps",), _canonical),
    Format("preference pairs", ("chosen", "rejected"), _pair),
    Format("chat messages", ("messages",), _chat),
    Format("chat messages", ("conversations",), _chat),
    Format("TRL completions", ("prompt", "completion", "advantage"), _trl),
    Format("prompt and completion", ("prompt", "completion"), _completion),
    Format("step rows", ("episode_id", "observation"), None),
)


def format_of(place: str, record: Any) -> Format:
    """The format of a first record; raises `EpisodeError`, naming what was looked for."""
    known = next((f for f in _FORMATS if isinstance(record, Mapping) and f.fits(record)), None)
    if known is None:
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else f"{record!r:.60}"
        wanted = "; ".join(f"{', '.join(f.fields)} ({f.name})" for f in _FORMATS)
        raise EpisodeError(
            f"{place}: unknown format. Fields found: {found or 'none'}. Fields looked for: {wanted}"
        )
    return known


def recognises(record: Any) -> bool:
    """Whether a record has the fields of one of the formats above."""
    return isinstance(record, Mapping) and any(known.fits(record) for known in _FORMATS)


def episodes_of(
    kind: Format, rows: Iterable[Located], columns: Columns, name: str
) -> Iterator[tuple[str, Episode]]:
    """Yield (place, episode) of rows of one format from a source of that name."""
    convert = kind.convert
    if convert is None:
        yield from step_row_episodes(rows, columns)
        return
    for number, (place, record) in enumerate(rows, 1):
        try:
            for field in kind.fields:
                column(record, field)
            episodes = list(convert(record, columns, f"{name}:{number}"))
        except EpisodeError as error:
            known = isinstance(record, Mapping) and convert is not _canonical and record.get("episode_id")
            episode = f"episode {known!r}: " if known else ""
            raise EpisodeError(f"{place}: {episode}{error}") from None
        yield from ((place, episode) for episode in episodes)
