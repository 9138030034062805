"""One episode: what happened, and how it ended. Frozen and validated.

As a record, which is one line of a file of episodes::

    {"episode_id": "a1", "goal": "open the door",
     "steps": [{"observation": "A hall.", "action": "look", "reward": null}],
     "outcome": 1.0, "terminated": true, "truncated": false, "metadata": {}}

A step pairs an action with the observation that *followed* it. `None` means "not known" and is never the same
as 0: an episode whose outcome is None is unlabelled, not failed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from valuegraph.records import EpisodeError

__all__ = [
    "Episode",
    "EpisodeError",
    "Observation",
    "Step",
    "check_goal",
    "check_success",
    "shape_of",
    "shown",
]

Observation = str | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One action and what the world answered. Raises `EpisodeError` for a wrong type, NaN or infinity."""

    observation: Observation
    """Text, or a vector of at least one finite number (a sequence of them becomes a tuple)."""
    action: str | None = None
    """What the agent did or said just before the observation; None where unknown."""
    reward: float | None = None
    """The environment's own reward for this step, any finite number; None where there was none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation", _observation(self.observation))
        _optional_text("action", self.action)
        object.__setattr__(self, "reward", _optional_number("reward", self.reward))


@dataclass(frozen=True, slots=True)
class Episode:
    """A goal, the steps taken, and the outcome. Raises `EpisodeError` naming the field that is wrong."""

    episode_id: str
    """Non-empty, unique within everything that is read, fitted or scored together."""
    steps: tuple[Step, ...]
    """At least one step; all text, or all vectors of one width."""
    goal: str | None = None
    """What was to be reached. A blank goal says nothing and becomes None."""
    outcome: float | None = None
    """How well it ended, in [0, 1]; None where nobody knows."""
    terminated: bool = False
    """The environment reached an end of its own."""
    truncated: bool = False
    """The episode was cut off (a time limit). Both flags may be true, as in Gymnasium."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Free JSON data that travels with the episode and never enters a score."""

    def __post_init__(self) -> None:
        if not isinstance(self.episode_id, str) or not self.episode_id:
            raise EpisodeError(f"episode_id: must be a non-empty string, not {shown(self.episode_id)}")
        _optional_text("episode_id", self.episode_id)
        object.__setattr__(self, "steps", _steps(self.steps))
        _optional_text("goal", self.goal)
        if self.goal is not None and not self.goal.strip():
            object.__setattr__(self, "goal", None)
        outcome = _optional_number("outcome", self.outcome)
        if outcome is not None and not 0.0 <= outcome <= 1.0:
            raise EpisodeError(f"outcome: must be in [0, 1], not {shown(self.outcome)}")
        object.__setattr__(self, "outcome", outcome)
        for name in ("terminated", "truncated"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise EpisodeError(f"{name}: must be true or false, not {shown(value)}")
            object.__setattr__(self, name, bool(value))
        object.__setattr__(self, "metadata", _metadata(self.metadata))

    @property
    def observation_kind(self) -> str:
        """`"text"` or `"vector"`: the one kind of observation that every step of the episode has."""
        return "text" if isinstance(self.steps[0].observation, str) else "vector"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, where: str = "") -> Episode:
        """The episode of a canonical record. Fields it does not know are ignored and not kept.

        `success` (a bool) stands in for `outcome` where that is absent or null, and may not contradict it.
        `where` (such as `"runs.jsonl, line 3"`) opens every `EpisodeError`.
        """
        if not isinstance(record, Mapping):
            raise EpisodeError(f"{_prefix(where)}an episode must be a JSON object, not {shown(record)}")
        prefix = _prefix(where)
        for name in ("episode_id", "steps"):
            if name not in record:
                raise EpisodeError(
                    f"{prefix}{name}: missing; fields found: {', '.join(map(str, record)) or 'none'}"
                )
            prefix = f"{_prefix(where)}episode {shown(record['episode_id'])}: "
        raw_steps, outcome = record["steps"], record.get("outcome")
        try:
            check_success(outcome, record.get("success"))
            if outcome is None and record.get("success") is not None:
                if not isinstance(record["success"], bool):
                    raise EpisodeError(f"success: must be true or false, not {shown(record['success'])}")
                outcome = float(record["success"])
            if not isinstance(raw_steps, list | tuple):
                raise EpisodeError(f"steps: must be a list, not {shown(raw_steps)}")
            return cls(
                episode_id=record["episode_id"],
                steps=tuple(_step_from_dict(raw, i) for i, raw in enumerate(raw_steps)),
                goal=record.get("goal"),
                outcome=outcome,
                terminated=record.get("terminated", False),
                truncated=record.get("truncated", False),
                metadata={} if record.get("metadata") is None else record["metadata"],
            )
        except EpisodeError as error:
            raise EpisodeError(f"{prefix}{error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The canonical record, every field present; `from_dict` turns it back into an equal episode."""
        return {
            "episode_id": self.episode_id,
            "goal": self.goal,
            "steps": [
                {
                    "observation": s.observation if isinstance(s.observation, str) else list(s.observation),
                    "action": s.action,
                    "reward": s.reward,
                }
                for s in self.steps
            ],
            "outcome": self.outcome,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "metadata": dict(self.metadata),
        }


def check_goal(goal: str | None) -> None:
    """Raise `EpisodeError` unless it is text, or None."""
    _optional_text("goal", goal)


def check_success(outcome: Any, success: Any) -> None:
    """Raise `EpisodeError` where one says success and the other failure; what was half done may be either."""
    numbers = all(isinstance(value, Real | np.bool_) for value in (outcome, success))
    if numbers and (outcome, success) in ((0, 1), (1, 0)):
        raise EpisodeError(f"outcome, success: {shown(outcome)} and {shown(success)} contradict each other")


def _step_from_dict(raw: Any, index: int) -> Step:
    if not isinstance(raw, Mapping):
        raise EpisodeError(f"steps[{index}]: must be a JSON object, not {shown(raw)}")
    if "observation" not in raw:
        raise EpisodeError(
            f"steps[{index}].observation: missing; fields found: {', '.join(map(str, raw)) or 'none'}"
        )
    try:
        return Step(raw["observation"], raw.get("action"), raw.get("reward"))
    except EpisodeError as error:
        raise EpisodeError(f"steps[{index}].{error}") from None


def _steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    if isinstance(steps, str | Mapping) or not isinstance(steps, Iterable):
        raise EpisodeError(f"steps: must be a list of Step, not {shown(steps)}")
    steps = tuple(steps)
    if not steps:
        raise EpisodeError("steps: empty; an episode has at least one step")
    for i, step in enumerate(steps):
        if not isinstance(step, Step):
            raise EpisodeError(f"steps[{i}]: must be a Step, not {shown(step)}")
        shape, first = shape_of(step.observation), shape_of(steps[0].observation)
        if shape != first:
            raise EpisodeError(f"steps[{i}].observation: {shape}, but steps[0] has {first}")
    return steps


def shape_of(observation: Observation) -> str:
    """What kind of observation it is, in words; those of episodes that go together have the same."""
    return "text" if isinstance(observation, str) else f"a vector of {len(observation)} numbers"


def _observation(value: Any) -> Observation:
    if isinstance(value, str):
        _optional_text("observation", value)
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 else value
    if not isinstance(value, list | tuple) or not len(value):
        raise EpisodeError(f"observation: must be text or a non-empty list of numbers, not {shown(value)}")
    if all(type(x) is float for x in value) and all(map(math.isfinite, value)):
        return tuple(value)
    return tuple(_number(f"observation[{i}]", x) for i, x in enumerate(value))


def _optional_text(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise EpisodeError(f"{name}: must be text or null, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise EpisodeError(f"{name}: not valid Unicode text: {error}") from None


def _optional_number(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value)


def _number(name: str, value: Any) -> float:
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise EpisodeError(f"{name}: must be a number, not {shown(value)}")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not math.isfinite(value):
        raise EpisodeError(f"{name}: must be a finite number, not {value}")
    return value


def _metadata(value: Any) -> dict[str, Any]:
    """A private copy in exactly the form it has after a round trip through JSON."""
    if not isinstance(value, Mapping):
        raise EpisodeError(f"metadata: must be a JSON object, not {shown(value)}")
    try:
        text = json.dumps(dict(value), allow_nan=False, ensure_ascii=False) if value else "{}"
        return json.loads(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise EpisodeError(f"metadata: not representable as JSON: {error}") from None


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def shown(value: Any) -> str:
    """A value as errors quote it: what is long is cut."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
