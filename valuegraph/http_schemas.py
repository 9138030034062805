"""What the OpenAPI page says about each request; the bodies themselves are checked by `payloads`."""

from __future__ import annotations

from typing import Any

__all__ = ["ABOUT", "SCHEMAS"]

ABOUT = """Scores rollouts by how they ended and how they got there.

Requests are JSON. 401: no or a wrong token. 408, 413: the body came too slowly or is too large. 422: a field
is wrong, and `detail` names it. 429: the queue is full. 503: nothing was begun. 504: it took too long.
"""

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_TEXTS = {"anyOf": [_TEXT, _list(_TEXT)]}
_UNIT = {"type": "number", "minimum": 0, "maximum": 1}
_STEP = _object(
    ["observation"],
    observation={"anyOf": [_TEXT, _list(_NUMBER)]},
    action=_or_null(_TEXT),
    reward=_or_null(_NUMBER),
)
_EPISODE = _object(
    ["episode_id", "steps"],
    episode_id=_TEXT,
    goal=_or_null(_TEXT),
    steps=_list(_STEP),
    outcome=_or_null(_UNIT),
    terminated=_FLAG,
    truncated=_FLAG,
    metadata={"type": "object"},
)
_EPISODES = _object(["episodes"], episodes=_list(_EPISODE))
_SCORES = _object(
    ["scores"],
    scores=_list(
        _object(
            [],
            episode_id=_TEXT,
            total=_UNIT,
            terminal=_UNIT,
            instrumental=_UNIT,
            support=_UNIT,
            potentials=_list(_UNIT),
            step_rewards=_list(_NUMBER),
        )
    ),
)
_LOGGED = ("terminal", "instrumental", "support", "scored")
_USAGE = _object([], prompt_tokens=_NUMBER, total_tokens=_NUMBER, completion_tokens=_NUMBER)


def _vllm(**data: Schema) -> Schema:
    items = _list(_object(list(data), index=_NUMBER, **data))
    return _object(["data"], id=_TEXT, object=_TEXT, created=_NUMBER, model=_TEXT, data=items, usage=_USAGE)


def _route(summary: str, request: Schema, response: Schema) -> dict[str, Any]:
    def content(schema: Schema) -> Schema:
        return {"content": {"application/json": {"schema": schema}}}

    answer = {"description": "Done", **content(response)}
    openapi = {"requestBody": {"required": True, **content(request)}, "responses": {"200": answer}}
    return {"summary": summary, "openapi": openapi}


_CLASSIFY = _route(
    "Score text or a chat (as vLLM's classify): one class, whose probability is the total",
    _object([], input=_TEXTS, messages=_list({"type": "object"})),
    _vllm(label=_TEXT, probs=_list(_UNIT), num_classes=_NUMBER),
)

SCHEMAS = {
    "/score": _route("Score episodes: totals, their parts, and a reward for every step", _EPISODES, _SCORES),
    "/get_reward": _route(
        "Reward queries as OpenRLHF sends them",
        _object(["query"], query=_list(_TEXT), prompts=_list(_TEXT), labels=_list({})),
        _object(
            ["rewards", "scores", "extra_logs"],
            rewards=_list(_UNIT),
            scores=_list(_UNIT),
            extra_logs=_object([], **dict.fromkeys(_LOGGED, _list(_UNIT))),
        ),
    ),
    "/v1/score": _route(
        "Score what was said to reach a goal (as vLLM's score)",
        _object(["text_1", "text_2"], text_1=_TEXTS, text_2=_TEXTS),
        _vllm(object=_TEXT, score=_UNIT),
    ),
    "/v1/classify": _CLASSIFY,
    "/classify": _CLASSIFY,
    "/update": _route(
        "Remember episodes; answered once they are on disk. 409: they are already remembered",
        _EPISODES,
        _object([], episodes=_NUMBER, new_nodes=_NUMBER, new_edges=_NUMBER, durable=_FLAG),
    ),
}
"""Path -> summary and OpenAPI description."""
