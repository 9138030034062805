"""What trainers hand over (prompts, completions, messages, states), in our terms; models by path."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valuegraph.conversations import Turn, completion_turns, prompt_goal
from valuegraph.episodes import Episode, EpisodeError, Step
from valuegraph.evidence import check_evidence

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

MODEL_VARIABLE = "VALUEGRAPH_MODEL"
"""Environment variable with the folder of the model that functions named on a command line score with."""
GOAL_VARIABLE = "VALUEGRAPH_GOAL_COLUMN"
"""Environment variable with the column (or field) that holds the goal; unset, the prompt is the goal."""
SCORES = ("total", "terminal", "instrumental", "support")
"""What a rollout is scored by, see `valuegraph.scores.Scores`."""

_models: dict[Path, tuple[tuple[int, ...], RewardModel]] = {}
_loading = threading.Lock()


def load_model(rm_or_path: RewardModel | str | os.PathLike[str]) -> RewardModel:
    """The model itself, or the one saved in a folder: read once per process and once per saved version."""
    if not isinstance(rm_or_path, str | os.PathLike):
        return rm_or_path
    from valuegraph.reward_model import RewardModel

    path = Path(rm_or_path).expanduser().resolve()
    with _loading:
        version = _version(path)
        if path not in _models or _models[path][0] != version:
            _models[path] = version, RewardModel.load(path)
        return _models[path][1]


def _version(folder: Path) -> tuple[int, ...]:
    """Changes with every snapshot and every logged update."""
    stats = [path.stat() for name in ("manifest.json", "updates.wal") if (path := folder / name).exists()]
    return tuple(number for s in stats for number in (s.st_ino, s.st_mtime_ns, s.st_size))


class ModelHandle:
    """A model that pickles: by the path it was given as, else as the bytes of a saved copy."""

    def __init__(self, rm_or_path: RewardModel | str | os.PathLike[str]) -> None:
        self.path: str | None = None
        if isinstance(rm_or_path, str | os.PathLike):
            self.path = str(Path(rm_or_path).expanduser().resolve())
        self.model = load_model(rm_or_path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ModelHandle, (self.path,)) if self.path else (_unpacked, (_packed(self.model),))

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelHandle:
        return self  # hosts copy their transforms; a copy of the model would learn nothing any more


def _packed(model: RewardModel) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _unpacked(files: Mapping[str, bytes]) -> ModelHandle:
    from valuegraph.reward_model import RewardModel

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return ModelHandle(RewardModel.from_pretrained(folder))


def environment_model() -> str:
    """The folder in `VALUEGRAPH_MODEL`; raises `EpisodeError` saying how to set it."""
    path = os.environ.get(MODEL_VARIABLE)
    if not path:
        raise EpisodeError(f"{MODEL_VARIABLE} is not set; it names the folder of a saved reward model")
    return path


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of N rows; None where a row cannot be scored, which is not a score of 0."""

    total: list[float | None]
    terminal: list[float | None]
    instrumental: list[float | None]
    support: list[float | None]
    step_rewards: list[list[float] | None]
    """Per step, summing to the total."""


def row_episode(
    completion: Any, goal: Any, *, evidence: str | None = None, name: str = "rollout"
) -> Episode | None:
    """One completion (text or messages) as an episode, or None if there is nothing to score.

    goal: text, or a prompt's messages (the last user message); without one there is nothing to judge by.
    evidence: None keeps actions and observations. "observation" keeps what the environment said, and drops
        the turns that nobody answered; "action" keeps what the policy wrote.

    Raises `EpisodeError` naming the row for messages that are malformed.
    """
    try:
        goal = None if goal is None else prompt_goal(goal)
        turns = completion_turns(completion, goal) if completion else []
    except ValueError as error:
        raise EpisodeError(f"{name}: {error}") from None
    steps = [Step(_clean(o), None if a is None else _clean(a)) for a, o in _evident(turns, evidence)]
    if goal is None or not goal.strip() or not steps:
        return None
    return Episode(name, tuple(steps), goal=_clean(goal))


def _evident(turns: Sequence[Turn], evidence: str | None) -> list[Turn]:
    """The turns that say something to somebody who sees this evidence alone."""
    if evidence is not None:
        check_evidence(evidence)
    if evidence == "observation":
        return [(None, observation) for _, observation in turns if observation.strip()]
    if evidence == "action":
        return [(action, "") for action, _ in turns if action and action.strip()]
    said = any((action or "").strip() or observation.strip() for action, observation in turns)
    return list(turns) if said else []


def _clean(text: str) -> str:
    """A lone surrogate in a tool's output must not stop a training run."""
    return text.encode("utf-8", "replace").decode()


def score_rows(model: RewardModel, episodes: Sequence[Episode | None]) -> RowScores:
    """Score what can be scored, in one call."""
    rows = [i for i, episode in enumerate(episodes) if episode is not None]
    columns: dict[str, list[Any]] = {key: [None] * len(episodes) for key in (*SCORES, "step_rewards")}
    if rows:
        scores = model.score([episode for episode in episodes if episode is not None])
        for key in SCORES:
            for i, value in zip(rows, getattr(scores, key).tolist(), strict=True):
                columns[key][i] = value if math.isfinite(value) else None
        for i, rewards in zip(rows, scores.step_rewards, strict=True):
            columns["step_rewards"][i] = rewards.tolist()
    return RowScores(**columns)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the scored rows, None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def named(fields: Mapping[str, Any], name: str, what: str) -> Any:
    """One of the fields by name; raises `EpisodeError` naming those there are."""
    if name not in fields:
        raise EpisodeError(f"{what} {name!r} is missing; found: {', '.join(map(str, fields)) or 'none'}")
    return fields[name]


def flat(state: Any) -> tuple[float, ...]:
    """The numbers of a state, in order."""
    return tuple(np.asarray(state, np.float64).ravel().tolist())


def observed(description: str | Sequence[float]) -> str | tuple[float, ...]:
    """What a `describe` function returned, as an observation."""
    return description if isinstance(description, str) else flat(description)
