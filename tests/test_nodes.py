"""Texts in one buffer behave as a list of them, and the table of nodes keeps exact counts in few bytes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valuegraph.nodes import COUNTED, LEDGER, NodeTable
from valuegraph.texts import Texts

said = st.lists(st.text(st.characters(codec=None), max_size=8), max_size=8)  # half characters too


@given(st.lists(said, max_size=5), st.slices(12))
def test_texts_are_a_list_of_strings(pieces: list[list[str]], part: slice) -> None:
    texts, expected = Texts(), []
    for piece in pieces:
        texts.extend(iter(piece))
        expected += piece
        assert len(texts) == len(expected)
    assert list(texts) == expected == [texts[i] for i in range(len(texts))]
    assert [texts[i - len(texts)] for i in range(len(texts))] == expected
    assert texts[part] == expected[part]
    assert texts == Texts(expected) == expected
    assert texts != [*expected, "one more"]
    for text in expected:
        assert text in texts
        assert texts.index(text) == expected.index(text)
    with pytest.raises(IndexError):
        texts[len(expected)]


def test_texts_cost_what_they_say_and_equal_ones_share_a_place() -> None:
    different = [f"Sight {i}." for i in range(50_000)]
    letters = sum(map(len, different)) / len(different)
    assert Texts(different).nbytes / len(different) < 1.2 * (letters + 9)
    assert sum(map(sys.getsizeof, different)) / len(different) > letters + 40  # control: strings
    one_by_one = Texts()
    for text in different:
        one_by_one.extend([text])
    assert one_by_one.nbytes / len(different) < 1.2 * (letters + 9)
    assert Texts(["the same words"] * 50_000).nbytes / 50_000 < 10


def test_counts_stay_exact_however_many_there_are() -> None:
    table = NodeTable(["a"], [0], [0.5], ledger={name: np.array([2.0**53 - 2]) for name in COUNTED})
    for name in COUNTED:
        table.column(name)[0] += 1.0
        assert int(table.column(name)[0]) == 2**53 - 1
    assert int(np.float32(2**24) + np.float32(1)) == 2**24  # control: single precision stops counting there


def test_what_is_gone_takes_room_only_where_something_is() -> None:
    ledger = {name: np.ones(40) for name in COUNTED}
    whole, some = (
        NodeTable(["x"] * 40, np.zeros(40), np.zeros(40), ledger=ledger | {"gone": gone})
        for gone in (np.zeros(40), np.arange(40.0))
    )
    assert (whole.nbytes, some.nbytes) == (68 * 40, 76 * 40)
    for table in (whole, some):
        table.extend(["new", "new"], 3, np.array([0.25, 0.5]))
        assert table.goal_of.tolist() == [0] * 40 + [3, 3]
        assert table.values[-2:].tolist() == [0.25, 0.5]
        assert {name: len(table.column(name)) for name in LEDGER} == dict.fromkeys(LEDGER, 42)
    assert not whole.column("gone").any()
    assert some.column("gone").tolist() == [*range(40), 0.0, 0.0]
    np.testing.assert_array_equal(whole.away, whole.column("ended"))
    np.testing.assert_array_equal(some.away, some.column("ended") + some.column("gone"))
    with pytest.raises(ValueError, match="read-only"):
        whole.column("gone")[0] = 1.0
