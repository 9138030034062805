"""Inside `one_thread` every pool has one thread; afterwards all are as they were."""

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from valuegraph.threads import one_thread


def threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info()}


def test_one_thread_inside_and_as_before_outside() -> None:
    with one_thread():
        pass  # every library is loaded now
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
