"""Step rewards on the tokens of their steps. EXPERIMENTAL: names and formulas may change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.conversations import split_steps


def step_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each of the steps that `split_steps` cuts the text into."""
    spans, position = [], 0
    for step in split_steps(text):
        start = text.index(step, position)
        position = start + len(step)
        spans.append((start, position))
    return spans


def token_steps(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(T,) the step each token belongs to, given the tokens' [start, end) offsets in the text.

    A token belongs to the last step that begins before the token ends, so white space belongs to the step it
    follows; tokens before the first step, and all tokens of a blank text, to none: -1.

    >>> token_steps("1. go\\n2. eat", [(0, 2), (2, 5), (5, 6), (6, 8), (8, 12)])
    array([0, 0, 0, 1, 1])
    """
    starts = np.array([start for start, _ in step_spans(text)], np.int64)
    ends = np.array([end for _, end in offsets], np.int64)
    return np.searchsorted(starts, ends, side="left") - 1


def step_token_rewards(step_rewards: Sequence[float], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T,) rewards of tokens: each step's shared equally among its tokens, 0 for tokens of no step.

    They sum to what the steps with a token sum to.

    >>> step_token_rewards([0.5, 0.25], np.array([-1, 0, 0, 1]))
    array([0.  , 0.25, 0.25, 0.25])
    """
    steps = np.asarray(steps, np.int64)
    rewards, counts = np.asarray(step_rewards, np.float64), np.bincount(steps[steps >= 0])
    out = np.zeros(len(steps))
    inside = steps >= 0
    out[inside] = rewards[steps[inside]] / counts[steps[inside]]
    return out


def process_advantages(
    step_rewards: Sequence[Sequence[float] | None], group_size: int
) -> list[NDArray[np.float64] | None]:
    """(N,) advantages of the steps of each completion, among the `group_size` that answer one prompt.

    A_k = sum over j >= k of (r_j - mean(r)) / (std(r) + 1e-4), mean and std over all steps of the group
    (process supervision with GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.3).
    None stays None.
    """
    out: list[NDArray[np.float64] | None] = []
    for start in range(0, len(step_rewards), group_size):
        group = step_rewards[start : start + group_size]
        pooled = np.concatenate([np.zeros(0), *(np.asarray(r, np.float64) for r in group if r is not None)])
        middle, spread = (pooled.mean(), pooled.std()) if len(pooled) else (0.0, 0.0)
        for rewards in group:
            if rewards is None:
                out.append(None)
                continue
            normal = (np.asarray(rewards, np.float64) - middle) / (spread + 1e-4)
            out.append(np.cumsum(normal[::-1])[::-1])
    return out


def token_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of generated tokens and each token's [start, end) in it; special tokens are empty.

    The lengths of decoded prefixes, so exact for what was generated, whatever the tokenizer would make of the
    text; a character of several tokens belongs to the last of them.
    """
    ends = [0]
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    for count in range(1, len(ids) + 1):
        prefix = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        ends.append(min(max(len(prefix.rstrip("\ufffd")), ends[-1]), len(text)))
    return text, list(pairwise(ends))
