"""Rewards and metrics for verifiers (0.4 and later), as functions of `(task, trace)`.

In a task's configuration, with the model's folder in `VALUEGRAPH_MODEL` (and in `VALUEGRAPH_GOAL_COLUMN` the
task's field with the goal, if it is not the prompt)::

    [env.taskset.task.rewards.valuegraph]
    fn = "valuegraph.integrations.verifiers.value_reward"

or, with a model at hand, from a reward of your own `Task`::

    valuegraph = make_reward(rm)

    class Game(vf.Task):
        @vf.reward
        async def value(self, trace):
            return await valuegraph(self.data, trace)

Nothing here imports verifiers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from valuegraph.episodes import Episode
from valuegraph.integrations._rollouts import (
    GOAL_VARIABLE,
    SCORES,
    environment_model,
    load_model,
    row_episode,
    score_rows,
)

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["make_reward", "trace_episode", "value_metrics", "value_reward"]

Scored = float | dict[str, float]


async def value_reward(task: Any, trace: Any) -> Scored:
    """The total in [0, 1]; an empty dict, which records nothing, where there is nothing to score."""
    return await _environment_reward(environment_model(), os.environ.get(GOAL_VARIABLE))(task, trace)


async def value_metrics(task: Any, trace: Any) -> dict[str, float]:
    """Metrics `valuegraph/terminal`, `valuegraph/instrumental` and `valuegraph/support`."""
    model = load_model(environment_model())
    scores = await asyncio.to_thread(_score, model, trace_episode(task, trace, os.environ.get(GOAL_VARIABLE)))
    return {f"valuegraph/{key}": value for key, value in scores.items() if key != "total"}


def make_reward(
    rm_or_path: RewardModel | str | os.PathLike[str],
    *,
    goal_field: str | None = None,
    evidence: str | None = None,
) -> Callable[[Any, Any], Awaitable[Scored]]:
    """An `async fn(task, trace)` like `value_reward`, of this model.

    goal_field: of the task's data; by default the prompt, else the trace's first user message.
    evidence: see `valuegraph.integrations.trl.ValueReward`.
    """
    model = load_model(rm_or_path)

    async def valuegraph(task: Any, trace: Any) -> Scored:
        episode = trace_episode(task, trace, goal_field, evidence=evidence)
        scores = await asyncio.to_thread(_score, model, episode)
        return scores.get("total", {})

    return valuegraph


def trace_episode(
    task: Any, trace: Any, goal_field: str | None = None, *, evidence: str | None = None
) -> Episode | None:
    """The last branch of a trace, from the first message that the model wrote; None if there is nothing."""
    branches = trace.branches
    nodes = list(branches[-1].nodes) if branches else []
    begin = next((i for i, node in enumerate(nodes) if node.sampled), len(nodes))
    messages = [node.message.model_dump() for node in nodes]
    goal = getattr(task, goal_field or "prompt", None)
    if goal is None and goal_field is None:
        goal = messages[:begin]
    elif not isinstance(goal, str | None):
        goal = [message.model_dump() for message in goal]
    return row_episode(messages[begin:], goal, evidence=evidence, name=f"trace {trace.id}")


def _score(model: RewardModel, episode: Episode | None) -> dict[str, float]:
    rows = score_rows(model, [episode])
    return {key: value for key in SCORES if (value := getattr(rows, key)[0]) is not None}


@lru_cache
def _environment_reward(path: str, goal_field: str | None) -> Callable[[Any, Any], Awaitable[Scored]]:
    return make_reward(path, goal_field=goal_field)
