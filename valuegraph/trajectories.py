"""Recorded runs of environments: step tables (one row a step) and Minari datasets to `Episode`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from valuegraph.episode import check_success
from valuegraph.episodes import Episode, EpisodeError, Step
from valuegraph.records import Located

Record = Mapping[str, Any]


class Columns(NamedTuple):
    """Where a table keeps what belongs to the whole episode. Errors (`EpisodeError`) name the column."""

    goal: str | None = None
    """The column the caller named for the goal, which then must be there; None: `goal`, if there."""
    outcome: str | None = None
    """The column the caller named for the outcome, which then must be there; None: the first of `usual`."""
    usual: tuple[str, ...] = ("outcome", "success", "reward", "score", "label")

    def goal_of(self, record: Record) -> str | None:
        """The goal a row gives, as text; a blank one is none."""
        goal = column(record, self.goal) if self.goal else record.get("goal")
        return None if goal is None or not str(goal).strip() else str(goal)

    def outcome_of(self, record: Record) -> float | None:
        """The outcome a row gives: a number in [0, 1], or a bool."""
        for name in (self.outcome,) if self.outcome else self.usual:
            value = column(record, name) if self.outcome else record.get(name)
            if isinstance(value, bool | np.bool_):
                return float(value)
            if value is not None:
                if not isinstance(value, Real) or not 0 <= cast(float, value) <= 1:  # NaN compares false too
                    raise EpisodeError(
                        f"{name}: an outcome is a number in [0, 1] or a bool, not {value!r:.60}"
                    )
                return float(value)
        return None


def column(record: Any, name: str) -> Any:
    """The value of a field that must be there, null or not."""
    if not isinstance(record, Mapping):
        raise EpisodeError(f"a record must be an object, not {record!r:.60}")
    if name not in record:
        raise EpisodeError(f"{name}: missing; fields found: {', '.join(map(str, record))}")
    return record[name]


def flag(record: Record, name: str) -> bool:
    """A bool that tables also write as 0 and 1; false where there is none."""
    value = record.get(name)
    if value is not None and value not in (0, 1):
        raise EpisodeError(f"{name}: must be true or false, not {value!r:.60}")
    return bool(value)


def step_row_episodes(rows: Iterable[Located], columns: Columns) -> Iterator[tuple[str, Episode]]:
    """Yield (place, episode) from rows of `episode_id`, `observation` and, if any, `t`, `action`, `reward`.

    The rows of an episode may lie apart; they are put in the order of `t`, or stay in that of the file. Goal,
    outcome (`outcome` or `success`; `reward` is the step's) and the flags may stand on every row or on one.
    """
    groups: dict[str, list[tuple[str, Record, Step]]] = {}
    columns = columns._replace(usual=("outcome", "success"))
    for place, record in rows:
        try:
            action = record.get("action") if isinstance(record, Mapping) else None
            text = None if action is None else action_text(action)
            step = Step(column(record, "observation"), text, record.get("reward"))
            episode_id = column(record, "episode_id")
            if episode_id is None:
                raise EpisodeError("episode_id: null; every step row must say which episode it belongs to")
            groups.setdefault(str(episode_id), []).append((place, record, step))
        except EpisodeError as error:
            raise EpisodeError(f"{place}: {error}") from None
    for episode_id, group in groups.items():
        try:
            yield group[0][0], _step_row_episode(episode_id, group, columns)
        except EpisodeError as error:
            raise EpisodeError(f"{group[0][0]}: episode {episode_id!r}: {error}") from None


def _step_row_episode(episode_id: str, group: list[tuple[str, Record, Step]], columns: Columns) -> Episode:
    times = [record.get("t") for _, record, _ in group]
    if any(t is not None for t in times):
        if not all(isinstance(t, Real) and t == t for t in times) or len(set(times)) < len(times):
            raise EpisodeError("t: must be a number on every row of the episode, and never the same twice")
        group = sorted(group, key=lambda row: row[1]["t"])
    records = [record for _, record, _ in group]
    goals = [goal for goal in map(columns.goal_of, records) if goal is not None]
    outcomes = [outcome for outcome in map(columns.outcome_of, records) if outcome is not None]
    if not columns.outcome:  # `success` may well be false on the way to it
        check_success(*(_last(records, name) for name in columns.usual))
    return Episode(
        episode_id,
        tuple(step for _, _, step in group),
        goal=goals[0] if goals else None,
        outcome=outcomes[-1] if outcomes else None,
        terminated=any(flag(record, "terminated") for record in records),
        truncated=any(flag(record, "truncated") for record in records),
        metadata=next((r["metadata"] for r in records if isinstance(r.get("metadata"), Mapping)), {}),
    )


def _last(records: Sequence[Record], name: str) -> Any:
    return next((r[name] for r in reversed(records) if r.get(name) is not None), None)


def minari_dataset(folder: Path) -> Any:
    """The dataset that Minari saved in a folder; raises `EpisodeError` naming the extra, or what is wrong."""
    try:
        from minari import MinariDataset
    except ModuleNotFoundError as error:
        raise EpisodeError(
            f"{folder}: a Minari dataset needs {error.name}: pip install 'valuegraph[minari]'"
        ) from None
    try:
        return MinariDataset(folder)
    except Exception as error:  # whatever the host makes of a folder that is not quite what it wrote
        raise EpisodeError(f"{folder}: not a Minari dataset: {error}") from None


def minari_episodes(dataset: Any) -> Iterator[tuple[str, Episode]]:
    """Yield (place, episode) of anything whose `iterate_episodes()` gives `minari.EpisodeData`.

    Minari keeps T+1 observations for T actions. Step t holds action t and the observation that followed it:
    the first observation, which no action led to, is left out; the last one, on which the outcome hangs, is
    kept.

    Observation: numbers flattened (keys of a dict sorted), a discrete one one-hot by the dataset's
    observation space. Goal: the texts of a dict observation, such as MiniGrid's `mission`. Outcome: where
    `infos` has `success` or `is_success`, 1 if it was ever true and else 0; otherwise the return over the
    best return of the dataset, clipped to [0, 1]; None where no return is positive, for then nothing says
    what success is.
    """
    name = str(getattr(dataset, "id", None) or "minari")
    space = getattr(dataset, "observation_space", None)
    best: float | None = None
    for data in dataset.iterate_episodes():
        infos = data.infos or {}
        success = next((infos[key] for key in ("success", "is_success") if key in infos), None)
        outcome: float | None
        if success is not None:
            outcome = float(np.any(success))
        else:
            if best is None:
                best = max(float(np.sum(other.rewards)) for other in dataset.iterate_episodes())
            outcome = float(np.clip(np.sum(data.rewards) / best, 0.0, 1.0)) if best > 0 else None
        place = f"{name}, episode {data.id}"
        try:
            episode = Episode(
                f"{name}:{data.id}",
                tuple(_minari_step(data, t, space) for t in range(len(data.rewards))),
                goal=_texts(_at(data.observations, 0)),
                outcome=outcome,
                terminated=bool(np.any(data.terminations)),
                truncated=bool(np.any(data.truncations)),
            )
        except EpisodeError as error:
            raise EpisodeError(f"{place}: {error}") from None
        yield place, episode


def action_text(action: Any) -> str:
    """An action as short text: `3`, `0.123 -1`, `turn: left, speed: 2`; text stays as it is.

    >>> action_text([0.12345, -1.0])
    '0.123 -1'
    """
    if isinstance(action, np.ndarray | np.generic):
        action = action.tolist()
    if isinstance(action, Mapping):
        return ", ".join(f"{key}: {action_text(value)}" for key, value in action.items())
    if isinstance(action, list | tuple):
        flat = not any(isinstance(part, Mapping | Sequence | np.ndarray) for part in action)
        return (" " if flat else ", ").join(map(action_text, action))
    return f"{action:.3g}" if isinstance(action, float) else str(action)


def _minari_step(data: Any, t: int, space: Any) -> Step:
    observed = _at(data.observations, t + 1)
    observation = observed if isinstance(observed, str) else tuple(_numbers(observed, space))
    return Step(observation, action_text(_at(data.actions, t)), float(data.rewards[t]))


def _at(stacked: Any, t: int) -> Any:
    """Entry t of a stacked space value: dicts and tuples hold one array per entry."""
    if isinstance(stacked, Mapping):
        return {key: _at(value, t) for key, value in stacked.items()}
    return tuple(_at(value, t) for value in stacked) if isinstance(stacked, tuple) else stacked[t]


def _numbers(value: Any, space: Any) -> list[float]:
    if isinstance(value, Mapping | tuple):
        keys: Sequence[Any] = sorted(value) if isinstance(value, Mapping) else range(len(value))
        inner = getattr(space, "spaces", None)
        parts = (
            _numbers(value[k], inner[k] if inner else None) for k in keys if not isinstance(value[k], str)
        )
        return [x for part in parts for x in part]
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "iu":
        if not hasattr(space, "n"):
            raise EpisodeError("observations: discrete, and no observation_space says how many there are")
        return np.eye(int(space.n))[int(array) - int(getattr(space, "start", 0))].tolist()
    return array.astype(float).ravel().tolist()


def _texts(value: Any) -> str | None:
    texts = (
        [value[k] for k in sorted(value) if isinstance(value[k], str)] if isinstance(value, Mapping) else []
    )
    return " ".join(texts) or None
