"""Hypothesis strategies for tests of code that takes episodes: yours as well as ours. Needs `hypothesis`.

>>> from hypothesis import given
>>> from valuegraph.testing import episodes
>>> @given(episodes(kind="text", max_steps=3))
... def test_my_scorer(episode):
...     assert 1 <= len(episode.steps) <= 3
>>> test_my_scorer()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from valuegraph.episodes import Episode, Step

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Kind = Literal["text", "vector"]

# few words, so that the steps of different episodes often say the same, as they do in real recordings
_WORDS = (
    "You",
    "take",
    "open",
    "see",
    "the",
    "a",
    "red",
    "blue",
    "key",
    "door",
    "kitchen",
    "not",
    "locked",
    "nothing",
)


def texts(max_words: int = 8) -> SearchStrategy[str]:
    """Mostly short sentences of few words; now and then any Unicode text, the empty one included."""
    from hypothesis import strategies as st

    return st.one_of(
        st.lists(st.sampled_from(_WORDS), max_size=max_words).map(" ".join), st.text(max_size=40)
    )


def vectors(width: int) -> SearchStrategy[tuple[float, ...]]:
    """Vectors of `width` finite numbers in [-10, 10]."""
    from hypothesis import strategies as st

    number = st.floats(-10.0, 10.0, allow_subnormal=False)
    return st.lists(number, min_size=width, max_size=width).map(tuple)


def steps(kind: Kind = "text", width: int = 3) -> SearchStrategy[Step]:
    """One step; action and reward may be None."""
    from hypothesis import strategies as st

    observation: SearchStrategy = texts() if kind == "text" else vectors(width)
    reward = st.none() | st.floats(-1.0, 1.0, allow_subnormal=False)
    return st.builds(Step, observation, st.none() | texts(), reward)


def episodes(
    kind: Kind | None = None, *, width: int = 3, min_steps: int = 1, max_steps: int = 8
) -> SearchStrategy[Episode]:
    """One valid episode, text or vectors (`kind=None`: either); goal and outcome may be None."""
    from hypothesis import strategies as st

    if kind is None:
        return st.one_of(
            *(episodes(k, width=width, min_steps=min_steps, max_steps=max_steps) for k in ("text", "vector"))
        )
    json_value = st.none() | st.booleans() | st.integers() | texts() | st.lists(st.integers(), max_size=2)
    return st.builds(
        Episode,
        episode_id=st.text(min_size=1, max_size=12),
        steps=st.lists(steps(kind, width), min_size=min_steps, max_size=max_steps).map(tuple),
        goal=st.none() | texts(),
        outcome=st.none() | st.sampled_from((0.0, 1.0)) | st.floats(0.0, 1.0, allow_subnormal=False),
        terminated=st.booleans(),
        truncated=st.booleans(),
        metadata=st.dictionaries(texts(2), json_value, max_size=2),
    )


def episode_lists(
    kind: Kind | None = None, *, min_size: int = 1, max_size: int = 6, width: int = 3, max_steps: int = 8
) -> SearchStrategy[list[Episode]]:
    """Episodes that can be read, fitted or scored together: unique ids, one kind, one width."""
    from hypothesis import strategies as st

    def of(kind: Kind) -> SearchStrategy[list[Episode]]:
        one = episodes(kind, width=width, max_steps=max_steps)
        return st.lists(one, min_size=min_size, max_size=max_size, unique_by=lambda e: e.episode_id)

    return of(kind) if kind else of("text") | of("vector")
