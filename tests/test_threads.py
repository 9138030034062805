"""In `one_thread`, and in parts side by side, every pool has one thread; afterwards all are as they were."""

from threading import Barrier

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from valuegraph.threads import one_thread, side_by_side


def threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info()}


def test_one_thread_inside_and_as_before_outside() -> None:
    with threadpool_limits(2):
        before = threads()
        with one_thread():
            assert threads() == {1}
            with one_thread():
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == before
        with one_thread(wanted=False):
            assert threads() == before


def test_parts_are_worked_on_side_by_side_with_one_thread_each() -> None:
    together = Barrier(3)

    def work(part: int) -> tuple[int, set[int]]:
        together.wait(10)  # passes only if all three are at work
        return part, threads()

    with threadpool_limits(2):
        before = threads()
        assert side_by_side(work, [5, 6, 7]) == [(5, {1}), (6, {1}), (7, {1})]
        assert threads() == before
    assert side_by_side(lambda part: part, [5]) == [5]
