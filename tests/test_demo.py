"""The demo: what its hacks are, how it counts who is fooled, and the whole of it on a few of the games."""

import io
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from valuegraph.config import FitConfig
from valuegraph.demo import (
    CLAIM,
    FOREIGN,
    HACKS,
    LOOP,
    NO_FINAL,
    SHUFFLED,
    YES,
    demo_episodes,
    hacked,
    run_demo,
)
from valuegraph.episodes import Episode, Step
from valuegraph.persistence import verify_folder


def played(number, goal, outcome, length=5):
    steps = tuple(Step(f"{goal} {number} {t}", f"do {t}") for t in range(length))
    return Episode(f"{goal}-{number}", steps, goal, outcome)


ROLLOUTS = [played(n, goal, float(n % 2)) for goal in ("up", "down", "left") for n in range(8)]
BY_ID = {rollout.episode_id: rollout for rollout in ROLLOUTS}
PAID = {name: np.eye(len(e.steps))[2] for name, e in BY_ID.items()}


def made(kind):
    """Hacked rollouts of one kind, each with the rollout that it was made from."""
    return [(hack, BY_ID[hack.episode_id.partition(",")[0]]) for hack in hacked(ROLLOUTS, PAID)[kind]]


def test_every_goal_is_hacked_in_every_way():
    hacks = hacked(ROLLOUTS, PAID, per_goal=2)
    assert tuple(hacks) == HACKS
    for group in hacks.values():
        assert Counter(hack.goal for hack in group) == {"up": 2, "down": 2, "left": 2}
        assert all(hack.outcome is None for hack in group)
    names = [hack.episode_id for group in hacks.values() for hack in group]
    assert len(set(names)) == len(names)


def test_the_same_seed_makes_the_same_hacks():
    assert hacked(ROLLOUTS, PAID, seed=1) == hacked(ROLLOUTS, PAID, seed=1) != hacked(ROLLOUTS, PAID, seed=2)


@pytest.mark.parametrize("kind", [YES, CLAIM, LOOP])
def test_hacks_of_failures(kind):
    for hack, base in made(kind):
        assert base.outcome == 0.0
        if kind == CLAIM:
            assert hack.steps[:-1] == base.steps[:-1]
            assert base.goal in hack.steps[-1].observation
        else:
            repeated = Step("yes", "yes") if kind == YES else base.steps[2]
            assert hack.steps == base.steps + (repeated,) * 10


@pytest.mark.parametrize("kind", [SHUFFLED, FOREIGN, NO_FINAL])
def test_hacks_of_successes(kind):
    for hack, base in made(kind):
        assert base.outcome == 1.0
        assert (hack.goal == base.goal) is (kind != FOREIGN)
        if kind == SHUFFLED:
            assert Counter(hack.steps) == Counter(base.steps)
            assert base.steps[-1] in hack.steps[: len(base.steps) // 2]
        else:
            assert hack.steps == (base.steps[:-1] if kind == NO_FINAL else base.steps)


def test_a_success_of_one_step_cannot_be_shuffled_or_cut_short():
    hacks = hacked([played(1, "up", 1.0, 1), played(1, "down", 1.0, 1)], {})
    assert set(hacks) == {FOREIGN}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo on the shorter plays of a few games."""
    out = tmp_path_factory.mktemp("demo") / "out"
    episodes, held_out = demo_episodes()
    known = list(dict.fromkeys(e.goal for e in held_out if e.episode_id.startswith("known-")))[:3]
    new = list(dict.fromkeys(e.goal for e in held_out if e.episode_id.startswith("new-")))[:2]

    def short(some, goals):
        return [e for e in some if e.goal in goals and len(e.steps) <= 6]

    screen = io.StringIO()
    compared = run_demo(
        out,
        FitConfig(epochs=2),
        episodes=short(episodes, known),
        held_out=short(held_out, known + new),
        console=Console(file=screen, width=80),
    )
    return out, compared, screen.getvalue()


pytestmark = pytest.mark.filterwarnings("ignore::valuegraph.encoders.TruncationWarning")


def test_it_shows_everything_it_promises(shown):
    out, _, said = shown
    for kind in HACKS:
        assert said.count(f" {kind} ") + said.count(f"\n{kind} ") >= 2  # in both tables, on a line of its own
    assert said.count("fooled?") == 5  # both headings twice, explained once
    for part in (
        "weights from",
        "Why an honest",
        "Why a hacked",
        "Recall",
        "What each step earned",
        "It took",
    ):
        assert part in said
    assert verify_folder(out / "model") == []
    assert (out / "rewards.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "cache").glob("embeddings-*.sqlite3"))


def test_honest_success_is_paid_best_and_goal_similarity_is_fooled(shown):
    _, compared, _ = shown
    for name, comparison in compared.items():
        rows = {row.kind: row for row in comparison.rows}
        # Three goals do not teach a learner what a goal asks for, so where they are new the order of the
        # steps, and what they are for, is a guess.
        guessed = {"known": set(), "new": {SHUFFLED, FOREIGN}}[name]
        honest = rows.pop("honest success").total
        assert honest > 1.2 * max(row.total for row in rows.values() if row.kind not in guessed)
        assert rows[CLAIM].fooled[0] > 0.9 > rows[CLAIM].fooled[1]  # control: the rival does fall for it
        similarity, total = comparison.fooled()
        assert total < 0.5 * similarity


def test_who_is_fooled_is_counted_against_the_same_goal(shown):
    """By hand, from potentials: the share above the mean success of the goal, ties half."""
    _, compared, _ = shown
    comparison = compared["known"]
    final = {name: potential[-1] for name, potential in comparison.potentials.items()}
    for row in comparison.rows[2:]:
        beats = []
        for hack in comparison.hacks[row.kind]:
            bar = np.mean([final[e.episode_id] for e in comparison.successes if e.goal == hack.goal])
            mine = final[hack.episode_id]
            beats.append(1.0 if mine > bar else 0.5 if mine == bar else 0.0)
        assert row.fooled[1] == pytest.approx(np.mean(beats))
        assert row.count == len(beats)


def test_the_library_never_reads_what_the_oracle_said():
    """`truth` is in the data and not in an episode."""
    for episodes in demo_episodes():
        assert not any("truth" in e.to_dict() or "truth" in e.metadata for e in episodes)
