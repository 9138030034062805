"""Text that a chat template rendered, taken apart again: what trainers send is often only that text."""

from __future__ import annotations

import re

from valuegraph.conversations import prompt_goal

__all__ = ["split_query", "templated_messages"]

# What opens a turn: ChatML, Llama 3, Gemma, Zephyr and Phi, DeepSeek, Mistral.
_OPENING = re.compile(
    r"<\|im_start\|>[ ]*(?P<chatml>\w+)\n?"
    r"|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\s*"
    r"|<start_of_turn>(?P<gemma>\w+)\n?"
    r"|<\|(?P<zephyr>system|user|assistant|observation|tool)\|>\n?"
    r"|<｜(?P<deepseek>User|Assistant)｜>"
    r"|\[(?P<mistral>/?INST)\]"
)
_SPECIAL = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|begin_of_text|finetune_right_pad_id)\|>"
    r"|<end_of_turn>|<｜(?:begin|end)▁of▁sentence｜>|</?s>|<(?:bos|eos|pad)>"
)
_ROLES = {"INST": "user", "/INST": "assistant", "model": "assistant"}
_PLAIN = re.compile(r"\s*(?:Human|User):\s*(?P<user>.*?)\s*Assistant:\s*", re.DOTALL)


def templated_messages(text: str) -> list[dict[str, str]]:
    """The messages in templated text, without special tokens; none in text without templated turns.

    >>> templated_messages("[INST] Open it. [/INST] Done.</s>")
    [{'role': 'user', 'content': 'Open it.'}, {'role': 'assistant', 'content': 'Done.'}]
    """
    openings = list(_OPENING.finditer(text))
    ends = [opening.start() for opening in openings[1:]] + [len(text)]
    messages = []
    for opening, end in zip(openings, ends, strict=False):
        name = opening[opening.lastgroup or 0]
        messages.append({"role": _role(name), "content": _clean(text[opening.end() : end])})
    return messages


def split_query(query: str, prompt: str | None = None) -> tuple[str | None, str]:
    """(goal, completion) of a query: a prompt and the text generated for it, as one text.

    The goal is the last user turn of the prompt, or the whole of a prompt without templated turns. Without a
    prompt, the completion begins with the first assistant turn, and untemplated text is all completion.
    Everything in the completion is the policy's own word: turns that it opens there for others only end a
    paragraph, or a policy could write its own observations.

    >>> split_query("User: Add 1 and 2.\\nAssistant: It is 3.</s>", "User: Add 1 and 2.\\nAssistant: ")
    ('Add 1 and 2.', 'It is 3.')
    """
    if prompt is None:
        prompt = query[: _end_of_opening(query, 1)]
    messages, plain = templated_messages(prompt), _PLAIN.fullmatch(prompt)
    goal = prompt_goal(messages or (plain["user"] if plain else _clean(prompt)))
    start = query.find(prompt)
    if start >= 0 and not _clean(query[:start]):  # decoding may add special tokens that the prompt lacks
        end = start + len(prompt)
    else:
        end = _end_of_opening(query, sum(message["role"] == "assistant" for message in messages) or 1)
    return goal or None, _clean(_OPENING.sub("\n\n", query[end:]))


def _end_of_opening(text: str, turn: int) -> int:
    """Where the given assistant turn (from 1) begins to speak; 0 if there are fewer."""
    ends = [m.end() for m in _OPENING.finditer(text) if _role(m[m.lastgroup or 0]) == "assistant"]
    return ends[turn - 1] if len(ends) >= turn else 0


def _role(name: str) -> str:
    return _ROLES.get(name, name.lower())


def _clean(text: str) -> str:
    return _SPECIAL.sub("", text).strip()
