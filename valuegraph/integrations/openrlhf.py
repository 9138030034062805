"""A reward function for OpenRLHF, by file: it imports nothing of OpenRLHF's.

With the model's folder in `VALUEGRAPH_MODEL`, give OpenRLHF a file of one line as its remote reward model::

    from valuegraph.integrations.openrlhf import reward_func

or run `valuegraph serve` and give it the address of `/get_reward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from valuegraph.chat_templates import split_query
from valuegraph.integrations._rollouts import SCORES, environment_model, load_model, row_episode, score_rows

__all__ = ["reward_func"]


def reward_func(
    queries: Sequence[str], prompts: Sequence[str] | None = None, labels: Any = None, **kwargs: Any
) -> dict[str, Any]:
    """(N,) tensors `rewards` and `scores` in [0, 1], and `extra_logs` with every part of them.

    A query is a prompt and its response in one text, with the marks of the chat template; the goal is the
    last user turn of the prompt. OpenRLHF knows no missing reward: what cannot be scored gets 0, and `scored`
    in `extra_logs` is then 0 and not 1. Labels are not read.
    """
    import torch

    given = [None] * len(queries) if prompts is None else prompts
    parts = [split_query(query, prompt) for query, prompt in zip(queries, given, strict=True)]
    rows = score_rows(
        load_model(environment_model()),
        [row_episode(response, goal, name=f"query {i}") for i, (goal, response) in enumerate(parts)],
    )
    columns = {key: [0.0 if v is None else v for v in getattr(rows, key)] for key in SCORES}
    columns["scored"] = [float(value is not None) for value in rows.total]
    tensors = {key: torch.tensor(values, dtype=torch.float32) for key, values in columns.items()}
    total = tensors.pop("total")
    return {"rewards": total, "scores": total.clone(), "extra_logs": tensors}
