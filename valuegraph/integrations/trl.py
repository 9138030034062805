"""Reward functions for TRL's `GRPOTrainer` and `RLOOTrainer`.

    from valuegraph.integrations.trl import ValueReward

    trainer = GRPOTrainer(model, reward_funcs=[ValueReward("runs/rm0")], ...)

or, from a shell, with the model's folder in the environment variable `VALUEGRAPH_MODEL` (and in
`VALUEGRAPH_GOAL_COLUMN` the column of the goal, if it is not the prompt)::

    trl grpo --reward_funcs valuegraph.integrations.trl.value_reward ...

Nothing here imports TRL but `step_reward_trainer`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from valuegraph.episodes import Episode
from valuegraph.evidence import check_evidence
from valuegraph.integrations._rollouts import (
    GOAL_VARIABLE,
    SCORES,
    ModelHandle,
    RowScores,
    environment_model,
    mean,
    named,
    row_episode,
    score_rows,
)
from valuegraph.integrations._tokens import (
    process_advantages,
    step_token_rewards,
    token_offsets,
    token_steps,
)

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = [
    "ValueReward",
    "process_advantages",
    "step_reward_trainer",
    "step_token_rewards",
    "token_offsets",
    "token_steps",
    "value_reward",
]


class ValueReward:
    """What TRL calls for rewards: one float in [0, 1] per completion, None where there is nothing to score.

    rm_or_path: a reward model, or the folder of one, read once per process however many instances use it.
    goal_column: the dataset's column with the goal; by default it is the prompt (its last user message).
    name: `__name__`, under which TRL logs; give each of several instances a name of its own.
    evidence: "observation" judges by the answers of tools and environments alone, "action" by what the policy
        wrote alone; by default by all that the model was fitted to see.
    output: "total", or "terminal", "instrumental" or "support".

    Completions may be text, which is cut into steps, or messages: an assistant turn is an action, the tool
    results after it are its observation. The other scores go to the completions table and to the metrics as
    `NAME/terminal` and so on. Thread-safe. Pickles with its model, or with the path it was made from.
    """

    def __init__(
        self,
        rm_or_path: RewardModel | str | os.PathLike[str],
        *,
        goal_column: str | None = None,
        name: str = "valuegraph",
        evidence: str | None = None,
        output: str = "total",
    ) -> None:
        if evidence is not None:
            check_evidence(evidence)
        if output not in SCORES:
            raise ValueError(f"output={output!r}, expected one of {SCORES}")
        self.goal_column, self.evidence, self.output = goal_column, evidence, output
        self.__name__ = name
        self._handle = ModelHandle(rm_or_path)

    @property
    def model(self) -> RewardModel:
        """The reward model that it scores with."""
        return self._handle.model

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any
    ) -> list[float | None]:
        """(N,) rewards. Raises `EpisodeError` for malformed messages or a goal column that is not there."""
        scores = self.score(prompts, completions, **kwargs)
        log_extra, log_metric = kwargs.get("log_extra"), kwargs.get("log_metric")
        for key in SCORES:
            values, column = list(getattr(scores, key)), f"{self.__name__}/{key}"
            if log_extra and key != self.output:
                log_extra(column, values)
            if log_metric and (average := mean(values)) is not None:
                log_metric(column, average)
        return list(getattr(scores, self.output))

    def score(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> RowScores:
        """Everything that is known of each completion, step rewards included."""
        return score_rows(self.model, self.episodes(prompts, completions, columns))

    def episodes(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[Episode | None]:
        """The completions as they are scored, None for those that are not."""
        goals = prompts if self.goal_column is None else named(columns, self.goal_column, "goal column")
        return [
            row_episode(completion, goal, evidence=self.evidence, name=f"completion {i}")
            for i, (goal, completion) in enumerate(zip(goals, completions, strict=True))
        ]

    def __repr__(self) -> str:
        return f"ValueReward({self._handle.path or '...'}, name={self.__name__!r}, output={self.output!r})"


def value_reward(prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """`ValueReward` of the model in `VALUEGRAPH_MODEL`, for a command line that takes a dotted path."""
    return _named_reward(environment_model(), os.environ.get(GOAL_VARIABLE))(prompts, completions, **kwargs)


def step_reward_trainer(reward: ValueReward, weight: float = 1.0) -> type:
    """EXPERIMENTAL: a `GRPOTrainer` whose tokens also get the advantage of the step that they belong to.

    To the advantage of a completion it adds `weight` times that of the token's step, normalised over the
    prompt's completions in this process (`process_advantages`). Completions are text without tool calls.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    class StepRewardTrainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super()._generate_and_score_completions(inputs)
            batch["advantages"] = batch["advantages"].unsqueeze(1) + weight * _dense(
                reward, self, inputs, batch
            )
            return batch

    return StepRewardTrainer


def _dense(
    reward: ValueReward, trainer: Any, inputs: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]
) -> Any:
    """(B, T) advantages of the tokens of a batch by their steps; 0 where nothing is scored."""
    import torch

    if trainer.tools:
        raise ValueError("step rewards reach the tokens of text only, not of tool calls")
    masks = batch["completion_mask"].bool()
    ids = [row[mask].tolist() for row, mask in zip(batch["completion_ids"], masks, strict=True)]
    texts, offsets = zip(*(token_offsets(trainer.processing_class, row) for row in ids), strict=True)
    columns = {key: [row[key] for row in inputs] for key in inputs[0]}
    scores = reward.score(columns.pop("prompt"), texts, **columns)
    group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    dense = torch.zeros(masks.shape, dtype=batch["advantages"].dtype, device=masks.device)
    for i, steps in enumerate(process_advantages(scores.step_rewards, group)):
        owner = token_steps(texts[i], offsets[i])
        if steps is not None:
            values = np.where(owner >= 0, steps[owner], 0.0)
            dense[i, masks[i]] = torch.as_tensor(values, dtype=dense.dtype, device=dense.device)
    return dense


@lru_cache
def _named_reward(path: str, goal_column: str | None) -> ValueReward:
    return ValueReward(path, goal_column=goal_column, name="value_reward")
