"""A reward function for verl, it imports nothing of verl's.

In verl's configuration, with the model's folder in `VALUEGRAPH_MODEL` or among the `reward_kwargs`::

    reward.custom_reward_function.path=pkg://valuegraph.integrations.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.model=/runs/rm0

verl passes no prompt, so the goal travels in the dataset's `extra_info`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from valuegraph.integrations._rollouts import (
    GOAL_VARIABLE,
    SCORES,
    environment_model,
    load_model,
    row_episode,
    score_rows,
)

__all__ = ["compute_score"]

_GOALS = ("goal", "question", "prompt", "raw_prompt")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    goal_key: str | None = None,
    evidence: str | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """verl's reward of one response: `score` in [0, 1], and beside it every part of it for the metrics.

    The goal is `extra_info[goal_key]`, by default the first of `goal`, `question`, `prompt`, `raw_prompt`
    that is there. Messages in `extra_info["messages"]` (a rollout with tools) stand for `solution_str`. verl
    knows no missing reward: a response that cannot be scored gets 0, and `scored` is then 0 and not 1.
    """
    info = extra_info or {}
    told = (key for key in _GOALS if _told(info.get(key)))
    key = goal_key or os.environ.get(GOAL_VARIABLE) or next(told, "goal")
    messages = info.get("messages")
    completion = solution_str if messages is None else list(messages)
    episode = row_episode(completion, info.get(key), evidence=evidence, name=str(data_source))
    scores = score_rows(load_model(model or environment_model()), [episode])
    row = {name: getattr(scores, name)[0] for name in SCORES}
    known = {name: 0.0 if value is None else value for name, value in row.items()}
    return {"score": known.pop("total"), **known, "scored": float(row["total"] is not None)}


def _told(value: Any) -> bool:
    """Whether there is anything; an array, as which pandas reads a list, has no truth of its own."""
    return len(value) > 0 if hasattr(value, "__len__") else value is not None
