"""Request bodies to episodes, scores to response bodies: plain functions, one pair for each client's JSON.

Every function that reads a body raises `EpisodeError` naming the field.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from valuegraph.chat_templates import split_query
from valuegraph.conversations import completion_turns, conversation_goal
from valuegraph.episodes import Episode, EpisodeError, Step, check_episodes
from valuegraph.integrations._rollouts import row_episode
from valuegraph.scores import Scores

__all__ = [
    "classification",
    "conversations_to_classify",
    "native_episodes",
    "openrlhf_episodes",
    "openrlhf_rewards",
    "pair_scores",
    "pairs_to_score",
    "score_records",
]

Record = Mapping[str, Any]

_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


def native_episodes(body: Any) -> list[Episode]:
    """`{"episodes": [...]}`, canonical records; their ids must be unique."""
    records = _list(_field(body, "episodes"), "episodes")
    if not records:
        raise EpisodeError("episodes: empty; send at least one")
    episodes = [Episode.from_dict(record, where=f"episodes[{i}]") for i, record in enumerate(records)]
    check_episodes(episodes)
    return episodes


def score_records(scores: Scores) -> dict[str, Any]:
    """`{"scores": [...]}`, one record an episode, in the order they came in."""
    columns = (scores.total, scores.terminal, scores.instrumental, scores.support)
    rows = zip(scores.episode_ids, *(c.tolist() for c in columns), strict=True)
    return {
        "scores": [
            {
                "episode_id": episode_id,
                "total": total,
                "terminal": terminal,
                "instrumental": instrumental,
                "support": support,
                "potentials": scores.potentials[i].tolist(),
                "step_rewards": scores.step_rewards[i].tolist(),
            }
            for i, (episode_id, total, terminal, instrumental, support) in enumerate(rows)
        ]
    }


def openrlhf_episodes(body: Any) -> list[Episode | None]:
    """OpenRLHF's `{"query": [...], "prompts": [...], "labels": [...]}`; labels are not read.

    A query is prompt and response as one text. Without prompts it is cut where the assistant first speaks.
    None where there is nothing to score: no goal, or a blank response.
    """
    queries = _texts(_field(body, "query"), "query")
    prompts: list[str] | list[None] = [None] * len(queries)
    if body.get("prompts") is not None:
        prompts = _texts(body["prompts"], "prompts")
        if len(prompts) != len(queries):
            raise EpisodeError(f"prompts: {len(prompts)} of them, but {len(queries)} in query")
    parts = [split_query(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    return [row_episode(said, goal, name=f"query[{i}]") for i, (goal, said) in enumerate(parts)]


def openrlhf_rewards(scores: Scores | None, scored: Sequence[bool]) -> dict[str, Any]:
    """`{"rewards", "scores", "extra_logs"}`: the totals as both, the parts of the score to be logged.

    scores: of the rows that are `scored`, in order; the others get 0, which `extra_logs` tells from a score.
    """
    columns: dict[str, list[float]] = {}
    for name in ("total", "terminal", "instrumental", "support"):
        known = iter([] if scores is None else getattr(scores, name).tolist())
        columns[name] = [next(known) if one else 0.0 for one in scored]
    total = columns.pop("total")
    return {"rewards": total, "scores": total, "extra_logs": columns | {"scored": [float(s) for s in scored]}}


def pairs_to_score(body: Any) -> list[Episode]:
    """vLLM's score request: goals (`text_1`) beside what was said to reach them (`text_2`).

    One goal for many texts, or as many goals as texts. `queries` with `documents` or `items`, and `data_1`
    with `data_2`, are other names of the same two.
    """
    if not isinstance(body, Mapping):
        raise EpisodeError("the body must be a JSON object")
    first, second = next((names for names in _PAIRS if all(name in body for name in names)), _PAIRS[0])
    goals, texts = _texts(_field(body, first), first), _texts(_field(body, second), second)
    if len(goals) == 1:
        goals = goals * len(texts)
    if len(goals) != len(texts):
        raise EpisodeError(f"{first}: {len(goals)} of them, but {len(texts)} in {second}")
    return [_said(i, goal, text) for i, (goal, text) in enumerate(zip(goals, texts, strict=True))]


def pair_scores(scores: Scores, model: str) -> dict[str, Any]:
    """vLLM's score response; a score is the total."""
    totals = enumerate(scores.total.tolist())
    return _vllm("score", model, [{"index": i, "object": "score", "score": total} for i, total in totals])


def conversations_to_classify(body: Any) -> list[Episode]:
    """vLLM's classify request: `input` (one text or several, templated or not) or the `messages` of a chat.

    The goal is the prompt of a templated text and the first user message of a chat; other texts have none.
    """
    if not isinstance(body, Mapping) or body.get("messages") is None:
        return [_said(i, *split_query(text)) for i, text in enumerate(_texts(_field(body, "input"), "input"))]
    messages = _list(body["messages"], "messages")
    try:
        return [_said(0, conversation_goal(messages), messages)]
    except ValueError as error:
        raise EpisodeError(f"messages{'' if str(error).startswith('[') else ': '}{error}") from None


def classification(scores: Scores, model: str) -> dict[str, Any]:
    """vLLM's classify response of a reward model: one class, whose probability is the total."""
    totals = enumerate(scores.total.tolist())
    data = [{"index": i, "label": "reward", "probs": [total], "num_classes": 1} for i, total in totals]
    return _vllm("classify", model, data)


def _vllm(kind: str, model: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        # clients expect the field; steps are embedded, not prompt tokens counted
        "usage": {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0},
    }


def _said(row: int, goal: str | None, completion: str | Sequence[Any]) -> Episode:
    turns = completion_turns(completion, goal)
    return Episode(str(row), tuple(Step(observation, action) for action, observation in turns), goal=goal)


def _field(body: Any, name: str) -> Any:
    if not isinstance(body, Mapping):
        raise EpisodeError(f"the body must be a JSON object, not {body!r:.60}")
    if name not in body:
        raise EpisodeError(f"{name}: missing; fields found: {', '.join(map(str, body)) or 'none'}")
    return body[name]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise EpisodeError(f"{name}: must be a list, not {value!r:.60}")
    return value


def _texts(value: Any, name: str) -> list[str]:
    """One text or several; a text may be wrapped as `{"content": [{"type": "text", "text": ...}]}`."""
    single = not isinstance(value, list)
    texts = [_unwrapped(text) for text in ([value] if single else value)]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise EpisodeError(f"{name if single else f'{name}[{i}]'}: must be text, not {text!r:.60}")
    if not texts:
        raise EpisodeError(f"{name}: empty; send at least one text")
    return texts


def _unwrapped(value: Any) -> Any:
    parts = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        return value
    texts = [part.get("text") for part in parts]
    return "\n".join(texts) if texts and all(isinstance(text, str) for text in texts) else value
