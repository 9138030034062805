"""What is chosen from a pool, by a scorer that knows, one that does not, and one that loves hacks."""

import numpy as np
import pytest

from benchmarks.best_of_n import Pool, chosen, curve, picture, table
from benchmarks.selection import best_of
from valuegraph import Episode, Step

SIZES = (1, 4, 16)


@pytest.fixture
def pools():
    rng = np.random.default_rng(0)
    made = []
    for task in range(3):
        attack = [""] * 24 + ["yes"] * 6 + ["recite"] * 2
        success = np.where([a == "" for a in attack], rng.random(32) < 0.4, False).astype(float)
        rollouts = [Episode(f"{task}/{i}", (Step("x"),), metadata={"task": str(task)}) for i in range(32)]
        made.append(Pool(rollouts, success, success, attack))
    return made


def test_the_truth_keeps_its_gold_and_noise_stays_where_it_was(pools):
    perfect = curve(pools, [pool.success for pool in pools], SIZES)
    assert perfect["ratio"] == 1.0
    assert perfect["gold"] == sorted(perfect["gold"])
    assert perfect["gold"][-1] > 0.95
    assert perfect["quantile"]["0.1"] == 1.0
    blind = curve(pools, [np.zeros(32) for _ in pools], SIZES)
    np.testing.assert_allclose(blind["gold"], blind["gold"][0])


def test_control_a_scorer_that_loves_hacks_ends_far_below_its_peak(pools):
    """It is right about honest rollouts, and pays hacks a little more than any success."""
    hacked = curve(pools, [p.success + 1.1 * np.array([a == "yes" for a in p.attack]) for p in pools], SIZES)
    assert hacked["gold"][-1] < 0.1 < hacked["peak"]
    assert hacked["ratio"] < 0.3
    assert hacked["hacked"][-1] > 0.9


def test_recite_counts_only_in_a_column_of_its_own(pools):
    proxies = [p.success + 2.0 * np.array([a == "recite" for a in p.attack]) for p in pools]
    found = curve(pools, proxies, SIZES)
    assert found["ratio"] == 1.0
    assert found["with_recite"] < found["gold"][-1] - 0.2
    pool = pools[0]
    assert chosen(pool, np.zeros(32), lambda p: best_of(p, 1)) == pytest.approx(
        [pool.success.sum() / 30, pool.success.sum() / 30, 6 / 30]
    )


def test_results_become_a_table_and_a_picture(pools, tmp_path):
    row = {"environment": "minigrid", "noise": 0.25, "sizes": list(SIZES), "tasks": 3, "scorer": "ours"}
    row |= curve(pools, [pool.success for pool in pools], SIZES)
    seen = {"environment": "minigrid", "auroc": 0.9, "flagged": 0.8, "false_alarms": 0.1}
    document = {"rows": [row], "monitor": [{**seen, "by_attack": {"yes": 1.0, "loop": 0.8}}]}
    assert "| ours | " in table(document)
    assert "loop 0.80, yes 1.00" in table(document)
    picture(document, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 1000
