"""Chat messages and free text, cut into steps: pure functions for the importers and for chat trainers.

An assistant turn is an action; what the user or a tool says next is the observation that followed it. A turn
that nobody answered (a plain completion, a closing answer) is free text and is cut by `split_steps`, each
piece an action with an empty observation: what a policy writes about itself is never taken for what the world
said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Turn = tuple[str | None, str]
"""(action or None, observation)"""

# OpenAI, Hugging Face and ShareGPT names; "world" is whoever answers the assistant
_ROLES = {
    **dict.fromkeys(("assistant", "gpt", "model", "function_call"), "assistant"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(
        ("tool", "function", "ipython", "environment", "observation", "function_response"), "world"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}
_NUMBERED = re.compile(r"[#*_(\s]*(?:step\s+)?\d{1,3}[.):](?=[\s*_]|$)", re.IGNORECASE)


def split_steps(text: str, max_steps: int = 64) -> list[str]:
    """Free text as steps: a new one begins after a blank line and at a numbered line (`2.`, `3)`, `Step 4:`).

    Blank and numbered lines inside a ``` fence do not count. Each step is a stripped slice of `text`, in
    order, and together they hold all of it but white space; the last of `max_steps` holds the whole rest.
    Blank text has no step.

    >>> split_steps("Let me see.\\n1. Open the door.\\n2. Walk in.\\n\\nDone.")
    ['Let me see.', '1. Open the door.', '2. Walk in.', 'Done.']
    """
    starts, position, fenced = [0], 0, False
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if bare.startswith("```"):
            fenced = not fenced
        elif not fenced and (not bare or _NUMBERED.match(bare)):
            starts.append(position)
        position += len(line)
    spans = [(a, b) for a, b in pairwise([*starts, len(text)]) if text[a:b].strip()]
    if len(spans) > max_steps:
        spans[max_steps - 1 :] = [(spans[max_steps - 1][0], len(text))]
    return [text[a:b].strip() for a, b in spans]


def conversation_goal(messages: Any) -> str | None:
    """What a whole conversation is for: its first user message, or None."""
    return next((text for role, text in _read(messages) if role == "user"), None)


def prompt_goal(prompt: Any) -> str | None:
    """What a completion answers: the prompt text, or the *last* user message of a prompt with a history."""
    if isinstance(prompt, str):
        return prompt
    return next((text for role, text in reversed(_read(prompt)) if role == "user"), None)


def completion_turns(completion: Any, goal: str | None = None, max_steps: int = 64) -> list[Turn]:
    """The turns of a completion: free text, or messages (with tool calls and tool results among them).

    A leading user message equal to `goal` is left out. Blank text is one turn that did nothing, not none.
    Raises ValueError where a message is malformed, or where no message is the assistant's.
    """
    if isinstance(completion, str):
        return [(piece, "") for piece in split_steps(completion, max_steps) or [""]]
    turns: list[tuple[str | None, list[str]]] = []
    for role, text in _read(completion):
        if role == "assistant":
            turns.append((text, []))
        elif role != "system" and (turns or role != "user" or goal is None or text.strip() != goal.strip()):
            turns = turns or [(None, [])]
            turns[-1][1].append(text)
    if all(action is None for action, _ in turns):
        raise ValueError("no assistant message, so nothing was done")
    result: list[Turn] = []
    for action, answers in turns:
        if action is not None and not answers:
            result += [(piece, "") for piece in split_steps(action, max_steps) or [""]]
        else:
            result.append((action, "\n\n".join(answers)))
    return result


def as_rows(value: Any) -> list[Any]:
    """A list of records, also from a dict of columns (how some tables store them), an array or JSON text."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"must be a list, not the text {value[:40]!r}") from None
    if (
        isinstance(value, Mapping)
        and value
        and all(isinstance(column, list | tuple) for column in value.values())
    ):
        if len({len(column) for column in value.values()}) > 1:
            raise ValueError(f"the columns {', '.join(map(str, value))} must be of one length")
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"must be a list, not {value!r:.60}")
    return list(value)


def _read(messages: Any) -> list[tuple[str, str]]:
    """(role, text) of each message; raises ValueError naming the message and the field."""
    result = []
    for i, message in enumerate(as_rows(messages)):
        if not isinstance(message, Mapping):
            raise ValueError(f"[{i}]: a message must be an object with role and content, not {message!r:.60}")
        name = message.get("role") or message.get("from")
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise ValueError(f"[{i}].role: must be one of {', '.join(_ROLES)}, not {name!r}")
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in message.items()}
        try:
            result.append((role, _text(plain)))
        except ValueError as error:
            raise ValueError(f"[{i}].{error}") from None
    return result


def _text(message: Mapping[str, Any]) -> str:
    """Content and tool calls of one message, as text."""
    content = message.get("content")
    content = message.get("value") if content is None else content
    parts = [_content(content)] if content is not None else []
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if not isinstance(calls, list | tuple):
        raise ValueError(f"tool_calls: must be a list, not {calls!r:.60}")
    parts += [_call(call) for call in calls]
    return "\n".join(part for part in parts if part)


def _content(content: Any) -> str:
    """A string, or the OpenAI and Anthropic list of parts; a part that is not text is named by its type."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"content: must be text or a list of parts, not {content!r:.60}")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise ValueError(f"content: a part must be an object, not {part!r:.60}")
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "tool_use":
            texts.append(_call({"name": part.get("name"), "arguments": part.get("input")}))
        elif part.get("type") == "tool_result":
            texts.append(_content(part.get("content") or ""))
        else:
            texts.append(f"[{part.get('type', 'attachment')}]")
    return "\n".join(texts)


def _call(call: Any) -> str:
    """`name(key="value", ...)`: the same text whether the arguments came as JSON text or as an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"tool_calls: a call needs a name, found {call!r:.60}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return (
                f"{function['name']}({arguments})"  # models do write broken JSON; it is still what they did
            )
    if isinstance(arguments, Mapping):
        # tables give every call the keys of all calls; null is how they spell "not passed"
        given = {key: value for key, value in arguments.items() if value is not None}
        inside = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())
    else:
        inside = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return f"{function['name']}({inside})"
