"""Every rival on a chain so small that what it must say is known."""

import json

import numpy as np
import pytest

from benchmarks.compare import flipped
from benchmarks.hacks import Truth
from benchmarks.intervals import attacks, by_task, calibration, epic, recall_at_k, summary, with_intervals
from benchmarks.measures import fidelity, hack_table
from benchmarks.report import BEGIN, END, section, write
from benchmarks.rivals import Ours, ablations, rivals
from benchmarks.rivals.memories import AssociativeMemory, BackwardCredit, EpisodicControl
from benchmarks.rivals.networks import (
    Evaluator,
    RandomizedDecomposition,
    Rudder,
    StepRewardLast,
    StepRewardNet,
    completions,
)
from benchmarks.rivals.similarity import GoalBaseline, GoalCosineLast, GoalCosineMax
from valuegraph import Episode, FitConfig, Step
from valuegraph.fitting import split


class OneHot:
    """Each distinct text has an axis of its own: texts are equal or have nothing in common."""

    id = fingerprint = "one-hot"
    dim = 32

    def __init__(self):
        self.axes = {}

    def _rows(self, texts):
        rows = np.zeros((len(texts), self.dim), np.float32)
        for i, text in enumerate(texts):
            if text is not None:
                rows[i, self.axes.setdefault(text, len(self.axes))] = 1.0
        return rows

    def encode_steps(self, steps, evidence="step"):
        return self._rows([step.observation for step in steps])

    def encode_goals(self, goals):
        return self._rows(goals)

    def to_config(self):
        return {}


def episode(name, path, outcome, goal="goal", task="one"):
    steps = tuple(Step(observation) for observation in path.split())
    return Episode(name, steps, goal=goal, outcome=outcome, metadata={"task": task})


WON, LOST = episode("won", "a b c", 1.0), episode("lost", "a d e", 0.0)
CHAIN = [WON, LOST]


def potentials(scorer, *paths, fit=CHAIN):
    scorer.fit(fit, OneHot())
    return scorer.score([episode(str(i), path, None) for i, path in enumerate(paths)])


def test_goal_cosine_is_that_of_the_last_step_or_of_the_best_so_far():
    last, best = (potentials(s, "a goal b") for s in (GoalCosineLast(), GoalCosineMax()))
    assert last.potentials[0] == pytest.approx([0, 1, 0])
    assert best.potentials[0] == pytest.approx([0, 1, 1])
    assert (last.totals[0], best.totals[0]) == pytest.approx((0, 1))


def test_goal_baseline_without_regularisation_is_goal_cosine():
    assert potentials(GoalBaseline(alpha=0.0), "a goal").potentials[0] == pytest.approx([0, 1])
    # Wholly projected, what lies off the line from baseline to goal counts where it meets it.
    # For unit axes b, g and a: proj(a) = b + (g - b) / 2, at a squared distance of 1/2 from g.
    assert potentials(GoalBaseline(alpha=1.0), "a goal").potentials[0] == pytest.approx([0.75, 1])


def test_episodic_control_averages_returns_and_weighs_by_inverse_distance():
    scorer = EpisodicControl(gamma=0.5, k=1)
    assert potentials(scorer, "a b c", "a d e").potentials == [
        pytest.approx([0.125, 0.5, 1.0]),
        pytest.approx([0.125, 0.0, 0.0]),
    ]
    # All five keys: an equal key weighs 1 / delta, the four others, at squared distance 1, 1 / (1 + delta).
    near, far = 1 / 1e-3, 1 / 1.001
    expected = (near * 1.0 + far * (0.125 + 0.5)) / (near + 4 * far)
    assert potentials(EpisodicControl(0.5, k=50), "c").totals[0] == pytest.approx(expected, rel=1e-4)


def test_max_backup_stitches_ways_that_no_episode_went():
    # d was only seen in failures, but it leads to b, which leads to success.
    fit = [WON, episode("lost", "d b e", 0.0)]
    scored = potentials(AssociativeMemory(gamma=0.5), "d b c", fit=fit)
    assert scored.potentials[0] == pytest.approx([0.25, 0.5, 1.0])
    control = potentials(EpisodicControl(gamma=0.5, k=1), "d", fit=fit)
    assert control.totals[0] == 0.0  # Monte-Carlo values cannot


def test_backward_credit_adds_up_so_loops_pay():
    scored = potentials(BackwardCredit(k=1), "a b c", "c c c")
    assert scored.potentials[0] == pytest.approx([0.32, 0.32 + 0.8, 0.32 + 0.8 + 1.0])  # a is half lost
    assert scored.totals[1] == pytest.approx(3.0)


def test_completions_are_success_rates_through_a_step_once_per_episode():
    again = episode("again", "a a b", 0.0)
    assert completions([WON, again]) == pytest.approx([0.5, 0.5, 1.0, 0.5, 0.5, 0.5])
    elsewhere = episode("elsewhere", "a", 1.0, goal="another")
    assert completions([LOST, elsewhere])[-1] == 1.0


@pytest.fixture(scope="module")
def many():
    return [
        episode(f"{e.episode_id}{i}", " ".join(s.observation for s in e.steps), e.outcome)
        for i in range(64)
        for e in CHAIN
    ]


def test_rudder_pays_where_the_return_becomes_known(many):
    won, lost = potentials(Rudder(epochs=100), "a b c", "a d e", fit=many).potentials
    assert won[0] == pytest.approx(0.5, abs=0.1)  # nobody can know yet
    assert won[1:] == pytest.approx([1, 1], abs=0.1)
    assert lost[1:] == pytest.approx([0, 0], abs=0.1)


def test_randomized_decomposition_sums_to_the_return_and_pays_for_padding(many):
    scored = potentials(RandomizedDecomposition(epochs=60), "a b c", "a d e", "a b c b c b c", fit=many)
    assert scored.totals[:2] == pytest.approx([1, 0], abs=0.15)
    assert scored.totals[2] > 2.0
    assert scored.potentials[0][-1] == scored.totals[0]


def test_step_reward_is_the_chance_of_success_and_its_total_the_least(many):
    least, last = (
        potentials(s, "a b c", "a d e", fit=many)
        for s in (StepRewardNet(epochs=80), StepRewardLast(epochs=80))
    )
    assert least.potentials[0] == pytest.approx([0.5, 1, 1], abs=0.1)
    assert least.totals == pytest.approx([0.5, 0.0], abs=0.1)
    assert last.totals == pytest.approx([1.0, 0.0], abs=0.1)


def test_evaluator_reads_the_last_step_alone(many):
    scored = potentials(Evaluator(epochs=40), "a b c", "d d c", "a d e", fit=many)
    assert scored.totals == pytest.approx([1, 1, 0], abs=0.15)


def test_rivals_refuse_episodes_without_outcome():
    with pytest.raises(ValueError, match="'unknown' has no outcome"):
        EpisodicControl().fit([episode("unknown", "a", None)], OneHot())


def test_names_are_distinct():
    names = [scorer.name for scorer in [*rivals(), Ours(), *ablations(Ours())]]
    assert len(set(names)) == len(names) == 17


# ---------------------------------------------------------------------- ours without a part


def test_ours_without_a_part_says_something_else(small_episodes, heldout_episodes, text_encoder):
    from dataclasses import replace

    base, known, new = Ours(), small_episodes[::2], heldout_episodes[::2]
    base.config = replace(base.config, epochs=1)
    base.fit(known, text_encoder)
    whole = base.score(new)
    for scorer in ablations(base)[:-1]:
        scorer.fit(known, text_encoder)
        scored = scorer.score(new)
        assert np.isfinite(scored.totals).all()
        assert np.abs(scored.totals - whole.totals).max() > 0.01, scorer.name
    again = base.score(new)  # nothing of the library stays replaced
    assert np.array_equal(again.totals, whole.totals)


# ---------------------------------------------------------------------- measures


def recorded(small=12):
    """Rollouts of two tasks with truth, and a score that follows it but for noise."""
    rng = np.random.default_rng(0)
    episodes, truths, scores = [], {}, []
    for task in ("one", "two"):
        for i in range(small):
            won = i % 2 == 0
            progress = np.round(np.linspace(0.2, 1.0 if won else rng.uniform(0.3, 0.6), 5), 2)
            if not won:
                progress[-1] = progress[-2]
            name = f"{task}{i}"
            episodes.append(episode(name, "a b c d e", float(won), task=task))
            truths[name] = Truth(tuple(progress), won)
            scores.append(progress + rng.normal(0, 0.1, 5))
    return episodes, truths, scores


def test_measures_by_task_are_those_of_the_whole():
    from benchmarks.hacks import build_hacks

    episodes, truths, scores = recorded()
    totals = [float(s[-1]) for s in scores]
    hacks = build_hacks(episodes, truths)
    hacked = np.random.default_rng(1).random(len(hacks))
    results = by_task(episodes, truths, scores, totals, hacks, hacked)
    expected = fidelity(episodes, truths, scores)
    assert {name: summary(results)[name] for name in expected} == pytest.approx(expected)
    table = hack_table(episodes, truths, totals, hacks, hacked)
    mine = attacks(results)
    assert set(mine) == set(table)
    for attack, row in table.items():
        assert mine[attack] == pytest.approx(row, nan_ok=True), attack


def test_intervals_hold_the_value_and_shrink_to_it_for_equal_tasks():
    episodes, truths, scores = recorded()
    results = by_task(episodes, truths, scores, [s[-1] for s in scores])
    for name, (value, low, high) in with_intervals(results).items():
        assert low <= value + 1e-9, name
        assert value <= high + 1e-9, name
    for value, low, high in with_intervals([results[0]] * 5).values():
        assert low == pytest.approx(value)
        assert high == pytest.approx(value)


def test_recall_epic_and_calibration_of_truth_and_of_its_opposite():
    true = np.array([True, False, True, False])
    assert recall_at_k(np.array([1.0, 0.0, 1.0, 0.0]), true) == 1.0
    assert recall_at_k(np.array([0.0, 1.0, 0.0, 1.0]), true) == 0.0
    assert recall_at_k(np.zeros(4), true) == 0.5
    assert epic([1, 2, 3], [2, 4, 6]) == pytest.approx(0.0, abs=1e-7)
    assert epic([1, 2, 3], [3, 2, 1]) == pytest.approx(1.0)
    assert epic([1, 1, 1], [3, 2, 1]) == pytest.approx(np.sqrt(0.5))
    assert calibration([1.0, 0.0], [True, False]) == (0.0, 0.0)
    assert calibration([1.0, 0.0], [False, True]) == (1.0, 1.0)


def test_flipped_turns_round_the_share_that_was_asked_for():
    episodes = [episode(str(i), "a", float(i % 2)) for i in range(40)]
    changed = [a.outcome != b.outcome for a, b in zip(episodes, flipped(episodes, 0.25), strict=True)]
    assert sum(changed) == 10
    assert flipped(episodes, 0.0) == episodes


def test_what_is_turned_round_is_not_what_a_fit_holds_out():
    wrong = flipped(episodes := [episode(str(i), "a", float(i % 2)) for i in range(400)], 0.25)
    held = split(400, FitConfig())[1]
    assert 0 < sum(wrong[i].outcome != episodes[i].outcome for i in held) < len(held) / 2


# ---------------------------------------------------------------------- report


def row(scorer, part="table", value=0.5, **where):
    names = ("rank", "auc", "step", "credit", "recall", "epic", "ece", "brier", "worst_win", "unearned_pay")
    return {
        "environment": "textworld",
        "protocol": "memory",
        "seed": 0,
        "part": part,
        **where,
        "scorer": scorer,
        "fitted_on": 10,
        "fit_seconds": 1.0,
        "score_seconds": 1.0,
        "measures": {name: [value, value - 0.1, value + 0.1] for name in names},
        "attacks": {"yes": {"win": value, "pay": 0.0}, "recite": {"win": 1.0, "pay": 0.0}},
    }


def test_report_writes_its_section_and_leaves_the_rest(tmp_path):
    rows = [row("ours", value=0.9), row("RUDDER"), row("ours without graph", "ablations")]
    rows += [row("ours", "noise", 0.8), row("RUDDER", "noise", 0.3)]
    rows += [row(name, "curves", size=n) for name in ("ours", "RUDDER") for n in (10, 100)]
    results = tmp_path / "compare.json"
    results.write_text(json.dumps({"version": "0", "held_out": "test", "seeds": [0], "rows": rows}))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    write(results, tmp_path, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "stale" not in text
    assert "RUDDER" in text
    tables = (tmp_path / "compare.md").read_text()
    for words in ("ours without graph", "recite", "flipped"):
        assert words in tables
    assert {p.name for p in tmp_path.glob("*.svg")} == {"compare_curves.svg", "compare_hacks.svg"}
    write(results, tmp_path, readme)
    assert readme.read_text() == text


def test_report_refuses_a_page_without_its_marks():
    with pytest.raises(ValueError, match="bench:begin"):
        section("no marks", "new")


def test_losses_stay_in_the_table(tmp_path):
    results = tmp_path / "compare.json"
    rows = [row("ours", value=0.1), row("RUDDER", value=0.7)]
    results.write_text(json.dumps({"version": "0", "held_out": "test", "seeds": [0], "rows": rows}))
    write(results, tmp_path)
    assert "**.70**" in (tmp_path / "compare.md").read_text()
