"""The reward model through its front door: what no rollout can do to its score, what no input to the model.

Properties run on a model of real TextWorld episodes and on one of vectors from a small grid world. Beside the
properties about cheating stand two naive rewards that the same tests find out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from valuegraph import ArrayEncoder, Episode, EpisodeError, FitConfig, RewardModel, Step
from valuegraph.context import encode_episodes
from valuegraph.credit import potential_shaping
from valuegraph.durable import FolderBusyError, ModelFolderError
from valuegraph.reward_model import UpdateReport
from valuegraph.testing import episodes as any_episode

QUICK = FitConfig(epochs=2, hidden=16, z_dim=8, device="cpu")
ROUNDING = 1e-5
"""Matrix products of other shapes differ in their last bits; a score may not gain more than that."""

# No shrinking: the first counterexample is readable, and the controls are meant to fail.
PROPERTY = settings(
    deadline=None,
    max_examples=30,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

Totals = Callable[[Sequence[Episode]], np.ndarray]
Hack = Callable[[st.DrawFn, tuple[Step, ...]], tuple[Step, ...]]


# --- two worlds ---


def play(number: int, goal: str, skill: float, rng: np.random.Generator) -> Episode:
    """A room of five by five: fetch the key from one corner, then reach the door in another."""
    here, door, key, steps, won = (
        rng.integers(0, 5, 2),
        np.array({"red": (4, 0), "blue": (0, 4)}[goal]),
        0.0,
        [],
        0.0,
    )
    while len(steps) < 20 and not won:
        aim = door if key else np.array([4, 4])
        wise = rng.random() < skill and (aim != here).any()
        axis = rng.choice(np.flatnonzero(aim != here)) if wise else rng.integers(2)
        here = here.copy()
        here[axis] = np.clip(here[axis] + (np.sign(aim - here)[axis] if wise else rng.choice([-1, 1])), 0, 4)
        key = max(key, float((here == 4).all()))
        steps.append(Step((float(here[0]), float(here[1]), 4.0 * key)))
        won = float(key and (here == door).all())
    return Episode(f"{goal}-{number}", tuple(steps), goal=goal, outcome=won, terminated=bool(won))


@pytest.fixture(scope="module")
def grid_episodes() -> list[Episode]:
    rng = np.random.default_rng(0)
    return [play(i, ("red", "blue")[i % 2], (0.95, 0.6, 0.2, 0.0)[i // 2 % 4], rng) for i in range(80)]


@pytest.fixture(scope="module")
def grid_model(grid_episodes) -> RewardModel:
    return RewardModel.fit(grid_episodes, config=replace(QUICK, epochs=4), progress=False)


TEXT_ALIEN = [
    Step("yes", "yes"),
    Step("yes"),
    Step("wait ... nothing happens", "wait"),
    Step("I am thinking about my plan."),
    Step("lorem ipsum dolor sit amet", "consectetur"),
]
VECTOR_ALIEN = [Step((x, y, z)) for x in (900.0, -70.0) for y in (1e6, -500.0) for z in (90.0, -1e3)]


class World:
    """A model with the episodes it knows and some that it does not."""

    def __init__(self, model: RewardModel, known: list[Episode], alien: list[Step], fresh: list[Episode]):
        self.model, self.known, self.alien = model, known, alien
        self.bases = [*known[::2], *fresh]
        self.successes = [e for e in known if e.outcome == 1.0 and len(e.steps) > 2]

    def total(self, rollouts: Sequence[Episode]) -> np.ndarray:
        return self.model.score(rollouts).total

    def goal_sum(self, rollouts: Sequence[Episode]) -> np.ndarray:
        """A control: what the steps resemble the goal, added up."""
        encoded = encode_episodes(rollouts, self.model.encoder)
        cosine = np.sum(encoded.steps * encoded.goals[encoded.episode_of], axis=1)
        return np.bincount(encoded.episode_of, np.maximum(cosine, 0.0))

    def value_sum(self, rollouts: Sequence[Episode]) -> np.ndarray:
        """A control: what the memory says that the steps are worth, added up."""
        encoded, graph = encode_episodes(rollouts, self.model.encoder), self.model.graph
        keys = graph.keys(None, encoded.steps, encoded.goals[encoded.episode_of])
        return np.bincount(encoded.episode_of, graph.read(graph.neighbours(keys)))


@pytest.fixture(scope="module", params=["text", "vectors"])
def world(request) -> World:
    if request.param == "text":
        fixtures = ("small_model", "small_episodes", "heldout_episodes")
        model, known, fresh = (request.getfixturevalue(name) for name in fixtures)
        return World(model, known, TEXT_ALIEN, fresh)
    rng = np.random.default_rng(1)
    fresh = [replace(play(i, "red", 0.7, rng), episode_id=f"fresh-{i}") for i in range(20)]
    model, known = (request.getfixturevalue(name) for name in ("grid_model", "grid_episodes"))
    return World(model, known, VECTOR_ALIEN, fresh)


# --- cheating ---


def repeat(draw: st.DrawFn, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Steps said again, right away or later."""
    hacked = list(steps)
    for _ in range(draw(st.integers(1, 6))):
        source = draw(st.integers(0, len(hacked) - 1))
        hacked.insert(draw(st.integers(source, len(hacked) - 1)) + 1, hacked[source])
    return tuple(hacked)


def loop_at_the_end(draw: st.DrawFn, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    return steps + draw(st.lists(st.sampled_from(steps), min_size=1, max_size=10).map(tuple))


def pad_at_the_end(alien: list[Step]) -> Hack:
    def hack(draw: st.DrawFn, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return steps + draw(st.lists(st.sampled_from(alien), min_size=1, max_size=10).map(tuple))

    return hack


def pad_anywhere(alien: list[Step]) -> Hack:
    def hack(draw: st.DrawFn, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        hacked = list(steps)
        for _ in range(draw(st.integers(1, 6))):
            hacked.insert(draw(st.integers(0, len(hacked))), draw(st.sampled_from(alien)))
        return tuple(hacked)

    return hack


def restate_the_goal(draw: st.DrawFn, steps: tuple[Step, ...], goal: str) -> tuple[Step, ...]:
    return steps + (Step(goal, draw(st.sampled_from((None, "say", "done")))),) * draw(st.integers(1, 3))


def permute(draw: st.DrawFn, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    hacked = tuple(draw(st.permutations(steps)))
    assume([s.observation for s in hacked] != [s.observation for s in steps])
    return hacked


def assert_never_pays(total: Totals, bases: list[Episode], hack: Hack, examples: int = 30) -> None:
    """No episode earns more after the hack than before."""

    @settings(PROPERTY, max_examples=examples)
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        base = data.draw(st.sampled_from(bases))
        hacked = replace(base, episode_id="hacked", steps=hack(data.draw, base.steps))
        before, after = total([base, hacked])
        assert after <= before + ROUNDING, (base.episode_id, [s.observation for s in hacked.steps])

    property_()


def test_repeating_never_pays(world: World) -> None:
    assert_never_pays(world.total, world.bases, repeat)
    assert_never_pays(world.total, world.bases, loop_at_the_end)


def test_padding_never_pays(world: World) -> None:
    assert_never_pays(world.total, world.bases, pad_at_the_end(world.alien))
    assert_never_pays(world.total, world.bases, pad_anywhere(world.alien))


def test_permuting_a_remembered_success_never_pays(world: World) -> None:
    assert_never_pays(world.total, world.successes, permute)


def test_permuting_costs_most_of_a_success(world: World) -> None:
    rng = np.random.default_rng(0)
    shuffled = [
        replace(e, episode_id=str(i), steps=tuple(e.steps[t] for t in rng.permutation(len(e.steps))))
        for i, e in enumerate(world.successes)
    ]
    kept = {
        name: getattr(world, name)(shuffled).mean() / getattr(world, name)(world.successes).mean()
        for name in ("total", "goal_sum", "value_sum")
    }
    assert kept["total"] < 0.8
    # Control: sums do not see an order at all.
    assert kept["goal_sum"] == pytest.approx(1.0, abs=1e-5)
    assert kept["value_sum"] == pytest.approx(1.0, abs=1e-5)


def test_restating_the_goal_never_pays(small_model, small_episodes) -> None:
    for goal in sorted({e.goal for e in small_episodes}):
        bases = [e for e in small_episodes if e.goal == goal]

        def hack(draw: st.DrawFn, steps: tuple[Step, ...], goal: str = goal) -> tuple[Step, ...]:
            return restate_the_goal(draw, steps, goal)

        assert_never_pays(lambda rollouts: small_model.score(rollouts).total, bases, hack, examples=10)


@pytest.mark.parametrize("naive", ["goal_sum", "value_sum"])
def test_control_a_naive_sum_pays_for_repeats(world: World, naive: str) -> None:
    for hack in (repeat, loop_at_the_end):
        with pytest.raises(AssertionError):
            assert_never_pays(getattr(world, naive), world.bases, hack)


def test_control_a_naive_sum_pays_for_padding(world: World) -> None:
    for hack in (pad_at_the_end(world.alien), pad_anywhere(world.alien)):
        with pytest.raises(AssertionError):
            assert_never_pays(world.goal_sum, world.bases, hack)


def test_control_a_naive_sum_pays_for_restating_the_goal(small_model, small_episodes) -> None:
    bases = [e for e in small_episodes if e.goal == small_episodes[0].goal]
    with pytest.raises(AssertionError):
        assert_never_pays(
            World(small_model, small_episodes, TEXT_ALIEN, []).goal_sum,
            bases,
            lambda draw, steps: restate_the_goal(draw, steps, bases[0].goal or ""),
        )


def test_one_task_alone_gives_no_room_for_padding(grid_episodes) -> None:
    """With no other task to compare with, what is near is learned from other episodes."""
    red = [e for e in grid_episodes if e.goal == "red"]
    for known in (red, [replace(e, goal=None) for e in red]):
        model = RewardModel.fit(known, config=QUICK, progress=False)
        world = World(model, known, VECTOR_ALIEN, [])
        for hack in (repeat, pad_at_the_end(VECTOR_ALIEN), pad_anywhere(VECTOR_ALIEN)):
            assert_never_pays(world.total, world.bases, hack)


# --- scores ---


def check(scores, rollouts: Sequence[Episode]) -> None:
    assert len(scores) == len(rollouts) == len(scores.potentials) == len(scores.step_rewards)
    assert scores.episode_ids == tuple(r.episode_id for r in rollouts)
    for name in ("total", "terminal", "instrumental", "support"):
        column = getattr(scores, name)
        assert column.shape == (len(rollouts),)
        assert column.dtype == np.float64
        assert ((column >= 0.0) & (column <= 1.0)).all(), name  # false for NaN
    for rollout, total, potential, rewards in zip(
        rollouts, scores.total, scores.potentials, scores.step_rewards, strict=True
    ):
        assert len(potential) == len(rewards) == len(rollout.steps)
        assert ((potential >= 0.0) & (potential <= 1.0)).all()
        assert rewards.sum() == pytest.approx(total, abs=1e-9)
        assert np.cumsum(rewards) == pytest.approx(potential, abs=1e-9)


def test_scores_of_real_rollouts(world: World) -> None:
    check(world.model.score(world.bases), world.bases)


def test_scores_tell_successes_from_failures(world: World) -> None:
    totals = world.total(world.bases)
    won = np.array([e.outcome == 1.0 for e in world.bases])
    assert (totals[won][:, None] > totals[~won]).mean() > 0.95


@PROPERTY
@given(st.data())
def test_no_rollout_however_strange_breaks_a_score(world: World, data: st.DataObject) -> None:
    kind = "text" if world.alien is TEXT_ALIEN else "vector"
    strange = data.draw(any_episode(kind, width=3))
    rollouts = [strange, replace(world.bases[0], steps=world.bases[0].steps + strange.steps)]
    check(world.model.score(rollouts), rollouts)


def test_far_from_everything_support_and_score_are_near_zero(world: World) -> None:
    for goal in (world.known[0].goal, "water the plants", None):
        alien = Episode("alien", tuple(world.alien), goal=goal, outcome=1.0, terminated=True)
        scores = world.model.score([alien])
        check(scores, [alien])
        assert scores.support[0] < 0.05
        assert scores.total[0] < 0.1


def test_a_score_does_not_depend_on_the_batch(world: World) -> None:
    rollouts = world.bases[:12]
    batch, backwards = world.model.score(rollouts), world.model.score(rollouts[::-1])
    for i, rollout in enumerate(rollouts):
        alone = world.model.score([rollout])
        for other, at in ((batch, i), (backwards, len(rollouts) - 1 - i)):
            for name in ("total", "terminal", "instrumental", "support"):
                assert getattr(alone, name)[0] == getattr(other, name)[at]
            assert np.array_equal(alone.potentials[0], other.potentials[at])
            assert np.array_equal(alone.step_rewards[0], other.step_rewards[at])


def test_what_a_rollout_says_of_its_own_success_is_not_read(world: World) -> None:
    honest = [replace(e, outcome=None, metadata={}) for e in world.bases[:20]]
    boasting = [
        replace(
            e, outcome=1.0, metadata={"success": True}, steps=tuple(replace(s, reward=1.0) for s in e.steps)
        )
        for e in honest
    ]
    assert np.array_equal(world.total(honest), world.total(boasting))


def test_many_threads_score_as_one(world: World) -> None:
    expected, found = world.total(world.bases[:20]), {}

    def work(i: int) -> None:
        found[i] = world.total(world.bases[:20])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(expected, totals) for totals in found.values())


def test_two_fits_with_one_seed_are_one_model(grid_episodes) -> None:
    one, two = (RewardModel.fit(grid_episodes, config=QUICK, progress=False) for _ in range(2))
    other = RewardModel.fit(grid_episodes, config=replace(QUICK, seed=1), progress=False)
    assert same_scores(one, two, grid_episodes)
    assert not same_scores(one, other, grid_episodes)


# --- shaping ---


def test_shaping_with_the_models_potential_telescopes(world: World) -> None:
    """Discounted shaping of a walk depends on where it starts and where it ends, and on nothing between."""
    gamma = 0.9
    for rollout in world.bases[:10]:
        states = [step.observation for step in rollout.steps]
        psi = world.model.potential(states, rollout.goal)
        assert psi.shape == (len(states),)
        assert ((psi >= 0.0) & (psi <= 1.0)).all()
        for terminated in (False, True):
            shaping = potential_shaping(psi, gamma, terminated)
            discounted = float(np.sum(gamma ** np.arange(len(shaping)) * shaping))
            end = 0.0 if terminated and len(states) > 1 else gamma ** (len(states) - 1) * psi[-1]
            assert discounted == pytest.approx(end - psi[0] if len(states) > 1 else 0.0, abs=1e-9)


def test_the_potential_is_a_function_of_the_state_alone(grid_model) -> None:
    states = [(0.0, 0.0, 0.0), (4.0, 3.0, 0.0), (4.0, 1.0, 4.0), (900.0, 900.0, 900.0)]
    together = grid_model.potential(states, "red")
    alone = [grid_model.potential([state], "red")[0] for state in states]
    assert together == pytest.approx(alone, abs=1e-6)
    start, _, near_the_door, nowhere = together
    assert near_the_door > start
    assert nowhere < 1e-9


def test_novelty_falls_with_visits_and_is_one_off_the_map(grid_model) -> None:
    known, unknown = grid_model.novelty([(4.0, 4.0, 4.0), (900.0, 900.0, 900.0)], "red")
    assert unknown == 1.0
    assert 0.0 < known < 0.5


# --- to disk and back ---


def same_scores(a: RewardModel, b: RewardModel, rollouts: Sequence[Episode]) -> bool:
    left, right = a.score(rollouts), b.score(rollouts)
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("total", "terminal", "instrumental", "support")
    ) and all(np.array_equal(x, y) for x, y in zip(left.potentials, right.potentials, strict=True))


@pytest.fixture
def copied(world: World, tmp_path) -> RewardModel:
    """The model of this world, loaded from a folder of its own: tests may change it."""
    world.model.save(tmp_path / "model")
    return RewardModel.load(tmp_path / "model", encoder=world.model.encoder)


def renamed(episodes: Sequence[Episode], prefix: str) -> list[Episode]:
    return [replace(e, episode_id=f"{prefix}{e.episode_id}") for e in episodes]


def test_a_loaded_model_is_the_saved_one_bit_for_bit(world: World, copied: RewardModel) -> None:
    assert same_scores(world.model, copied, world.bases)
    assert copied.config == world.model.config
    assert copied.summary() == world.model.summary()
    states = [step.observation for step in world.bases[0].steps]
    for method in ("potential", "novelty"):
        ours, theirs = (getattr(m, method)(states, world.bases[0].goal) for m in (world.model, copied))
        assert np.array_equal(ours, theirs)
    assert str(copied.explain(world.bases[0])) == str(world.model.explain(world.bases[0]))


def test_an_update_is_durable_and_replayed_identically(world: World, copied: RewardModel, tmp_path) -> None:
    fresh = renamed([e for e in world.bases if e not in world.known][:10], "new-")
    report = copied.update(fresh[:6])
    assert isinstance(report, UpdateReport)
    assert (report.episodes, report.durable) == (6, True)
    assert report.new_nodes >= 0 <= report.new_edges
    copied.update(fresh[6:])
    copied.close()
    again = RewardModel.load(tmp_path / "model", encoder=world.model.encoder)
    assert same_scores(copied, again, world.bases)
    assert again.summary() == copied.summary()
    assert again.summary()["episodes"] == world.model.summary()["episodes"] + 10
    assert np.array_equal(again.graph.values, copied.graph.values)
    again.save(tmp_path / "another")
    assert same_scores(
        RewardModel.load(tmp_path / "another", encoder=world.model.encoder), again, world.bases
    )


def test_updating_what_was_loaded_equals_updating_what_was_fitted(
    grid_model, grid_episodes, tmp_path
) -> None:
    fitted = RewardModel.fit(grid_episodes, config=QUICK, progress=False)
    fitted.save(tmp_path / "a")
    loaded = RewardModel.load(tmp_path / "a")
    fitted.save(tmp_path / "b")
    for model in (fitted, loaded):
        model.update(renamed(grid_episodes[:10], "again-"))
    assert same_scores(fitted, loaded, grid_episodes)


def test_an_update_teaches_a_way_that_was_not_known() -> None:
    """Online, from nothing: no learner, only the memory."""
    model = RewardModel.create(ArrayEncoder(2), QUICK)
    way = Episode("way", tuple(Step((float(t), 0.0)) for t in range(4)), goal="east", outcome=1.0)
    assert model.score([way]).total[0] < 0.01
    assert model.potential([(3.0, 0.0)], "east")[0] == 0.0
    assert model.novelty([(3.0, 0.0)], "east")[0] == 1.0
    report = model.update([way, replace(way, episode_id="lost", steps=way.steps[:1], outcome=0.0)])
    assert (report.episodes, report.new_nodes, report.new_edges, report.durable) == (2, 4, 3, False)
    assert model.score([way]).total[0] > 0.5
    assert model.potential([(3.0, 0.0)], "east")[0] > 0.5
    assert model.novelty([(3.0, 0.0)], "east")[0] < 1.0


def test_readers_go_on_while_a_second_writer_is_turned_away(
    world: World, copied: RewardModel, tmp_path
) -> None:
    new = renamed(world.bases[:3], "new-")
    copied.update(new[:1])  # from now on it holds the folder
    reader = RewardModel.load(tmp_path / "model", encoder=world.model.encoder)
    before = reader.score(world.bases[:5]).total
    with pytest.raises(FolderBusyError, match="one writer at a time"):
        reader.update(new[1:2])
    assert np.array_equal(reader.score(world.bases[:5]).total, before)
    assert reader.summary() == copied.summary()
    copied.update(new[1:2])
    copied.close()
    with pytest.raises(ModelFolderError, match="somebody else has written there since"):
        reader.update(new[2:])  # it would write over what it has not read
    assert reader.summary()["episodes"] == copied.summary()["episodes"] - 1
    fresh = RewardModel.load(tmp_path / "model", encoder=world.model.encoder)
    fresh.update(new[2:])
    fresh.close()


def test_a_save_that_fails_leaves_the_model_bound_to_the_folder_it_had(
    world: World, copied: RewardModel, tmp_path
) -> None:
    new = renamed(world.bases[:2], "new-")
    copied.update(new[:1])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    with pytest.raises(ModelFolderError, match="is in the way"):
        copied.save(tmp_path / "mine")
    assert copied.update(new[1:]).durable
    copied.close()
    again = RewardModel.load(tmp_path / "model", encoder=world.model.encoder)
    assert again.summary()["episodes"] == world.model.summary()["episodes"] + 2


def test_reading_while_writing_sees_the_memory_before_or_after(grid_episodes) -> None:
    model = RewardModel.fit(grid_episodes, config=QUICK, progress=False)
    probe = grid_episodes[:4]
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(tuple(model.score(probe).total))

    reader = threading.Thread(target=read)
    states = {tuple(model.score(probe).total)}
    reader.start()
    for i in range(5):
        model.update(renamed(grid_episodes[i::10], f"{i}-"))
        states.add(tuple(model.score(probe).total))
    done.set()
    reader.join()
    assert seen
    assert set(seen) <= states


def test_another_encoder_is_not_the_one_it_was_fitted_with(grid_model, tmp_path) -> None:
    RewardModel.create(ArrayEncoder(3, seed=1)).save(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="another encoder"):
        RewardModel.load(tmp_path / "model", encoder=ArrayEncoder(3, seed=2))


def test_a_config_that_is_no_reward_models_is_named(tmp_path) -> None:
    from valuegraph.persistence import write_folder

    write_folder(tmp_path / "model", config={"dim": 3}, tensors={}, blobs={}, documents={})
    with pytest.raises(ModelFolderError, match=r"config\.json: not a reward model's: KeyError\('encoder'\)"):
        RewardModel.load(tmp_path / "model")


# --- episodes of every sort ---


def vectors(n: int, rng: np.random.Generator) -> tuple[Step, ...]:
    return tuple(Step(tuple(rng.integers(0, 3, 2).astype(float))) for _ in range(n))


SORTS: dict[str, Callable[[int, np.random.Generator], Episode]] = {
    "no goal": lambda i, rng: Episode(str(i), vectors(4, rng), outcome=float(i % 2)),
    "some goals": lambda i, rng: Episode(
        str(i), vectors(4, rng), goal="go" if i % 3 else None, outcome=float(i % 2)
    ),
    "one step": lambda i, rng: Episode(str(i), vectors(1, rng), goal="go", outcome=float(i % 2)),
    "continuous outcomes": lambda i, rng: Episode(str(i), vectors(3, rng), goal="go", outcome=rng.random()),
    "no outcome but a goal": lambda i, rng: Episode(str(i), vectors(3, rng), goal="ab"[i % 2]),
    "some outcomes": lambda i, rng: Episode(
        str(i), vectors(3, rng), goal="go", outcome=None if i % 2 else float(i % 4 == 0)
    ),
    "only failures": lambda i, rng: Episode(str(i), vectors(3, rng), goal="go", outcome=0.0),
    "only successes": lambda i, rng: Episode(
        str(i), vectors(3, rng), goal="go", outcome=1.0, terminated=True
    ),
    "actions": lambda i, rng: Episode(
        str(i), tuple(replace(s, action="push") for s in vectors(3, rng)), outcome=float(i % 2)
    ),
    "one thing again and again": lambda i, _: Episode(str(i), (Step((1.0, 1.0)),) * 5, outcome=float(i % 2)),
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("count", [1, 24])
def test_every_sort_of_episode_can_be_fitted_scored_and_explained(sort: str, count: int) -> None:
    rng = np.random.default_rng(0)
    episodes = [SORTS[sort](i, rng) for i in range(count)]
    model = RewardModel.fit(episodes, config=replace(QUICK, epochs=1), progress=False)
    check(model.score(episodes), episodes)
    model.update(renamed(episodes, "again-"))
    scores = model.score(episodes)
    check(scores, episodes)
    assert float(model.explain(episodes[0]).total) == scores.total[0]
    assert model.recall(episodes[0].steps[0].observation, episodes[0].goal).support >= 0.0


def test_text_without_goal_and_without_actions(text_encoder, small_episodes) -> None:
    bare = [
        replace(e, goal=None, steps=tuple(replace(s, action=None) for s in e.steps))
        for e in small_episodes
        if e.metadata["task"] == "simple/401"
    ]
    model = RewardModel.fit(bare, text_encoder, QUICK, progress=False)
    scores = model.score(bare)
    check(scores, bare)
    won = np.array([e.outcome == 1.0 for e in bare])
    assert scores.total[won].min() > scores.total[~won].max()


def test_outcomes_grade_what_is_remembered() -> None:
    def way(name: str, place: float, outcome: float) -> Episode:
        return Episode(name, (Step((place, 0.0)), Step((place, 5.0))), goal="go", outcome=outcome)

    model = RewardModel.create(ArrayEncoder(2), QUICK)
    model.update([way("a", 0.0, 0.9), way("b", 9.0, 0.1)])
    good, poor = model.potential([(0.0, 5.0), (9.0, 5.0)], "go")
    assert good == pytest.approx(9 * poor, rel=1e-2)


# --- what is refused ---


def unchanged(model: RewardModel, call: Callable[[], object], message: str, rollouts: list[Episode]) -> None:
    before, summary = model.score(rollouts), model.summary()
    with pytest.raises(EpisodeError, match=message):
        call()
    assert model.summary() == summary
    assert np.array_equal(model.score(rollouts).total, before.total)


def test_neither_outcome_nor_goal_says_nothing(grid_model, grid_episodes) -> None:
    mute = Episode("mute", grid_episodes[0].steps)
    with pytest.raises(EpisodeError, match="episode 'mute': neither outcome nor goal"):
        RewardModel.fit([*grid_episodes[:3], mute], config=QUICK, progress=False)
    unchanged(
        grid_model, lambda: grid_model.update([mute]), "'mute': neither outcome nor goal", grid_episodes[:3]
    )
    check(grid_model.score([mute]), [mute])  # a rollout need not say it


def test_an_episode_is_remembered_once(grid_model, grid_episodes) -> None:
    known = grid_episodes[0]
    new = replace(known, episode_id="new")
    for batch, message in (
        ([known], f"'{known.episode_id}' is already remembered"),
        ([new, known], "is already remembered"),
        ([new, new], r"episodes\[1\]: episode_id: 'new' was already used at episodes\[0\]"),
    ):
        unchanged(grid_model, lambda batch=batch: grid_model.update(batch), message, grid_episodes[:3])
    with pytest.raises(EpisodeError, match="was already used"):
        RewardModel.fit([known, known], config=QUICK, progress=False)


def test_of_two_threads_with_one_episode_one_is_refused(grid_episodes) -> None:
    class Slow(ArrayEncoder):
        """Both threads have looked whether the episode is known before either has written it."""

        barrier: threading.Barrier | None = None

        def encode_steps(self, steps, evidence="step"):
            if self.barrier is not None:
                with suppress(threading.BrokenBarrierError):
                    self.barrier.wait(timeout=0.5)
            return super().encode_steps(steps, evidence)

    encoder = Slow(3)
    model, refused = RewardModel.create(encoder, QUICK), []
    encoder.barrier = threading.Barrier(2)

    def work() -> None:
        try:
            model.update(grid_episodes[:1])
        except EpisodeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert model.summary()["episodes"] == 1


def test_the_wrong_kind_or_width_of_observation_is_named(
    grid_model, small_model, grid_episodes, small_episodes
) -> None:
    wide = Episode("wide", (Step((1.0, 2.0, 3.0, 4.0)),), outcome=1.0)
    text, vector = Episode("text", (Step("hello"),), outcome=1.0), grid_episodes[0]
    for bad, message in ((wide, "'wide'.*width 4, expected 3"), (text, "'text'.*the observation is text")):
        for method in (grid_model.update, grid_model.score):
            unchanged(grid_model, lambda bad=bad, method=method: method([bad]), message, grid_episodes[:3])
    for method in (small_model.update, small_model.score):
        new = replace(vector, episode_id="vector")
        unchanged(small_model, lambda method=method, new=new: method([new]), "'vector'", small_episodes[:2])


def test_kinds_and_widths_do_not_mix(grid_model, grid_episodes) -> None:
    text = Episode("text", (Step("hello"),), outcome=1.0)
    wide = Episode("wide", (Step((1.0, 2.0, 3.0, 4.0)),), outcome=1.0)
    new = replace(grid_episodes[0], episode_id="new")
    for odd in (text, wide):
        with pytest.raises(
            EpisodeError, match=rf"episodes\[1\]: episode '{odd.episode_id}'.*have a vector of 3"
        ):
            RewardModel.fit([new, odd], config=QUICK, progress=False)
        unchanged(
            grid_model, lambda odd=odd: grid_model.update([new, odd]), "a vector of 3", grid_episodes[:3]
        )


def test_nothing_at_all_is_refused(grid_model, grid_episodes) -> None:
    with pytest.raises(EpisodeError, match="no episode to fit on"):
        RewardModel.fit([], config=QUICK, progress=False)
    unchanged(grid_model, lambda: grid_model.update([]), "no episode to update with", grid_episodes[:3])
    unchanged(grid_model, lambda: grid_model.score([]), "no rollout to score", grid_episodes[:3])


def test_a_refused_update_leaves_the_folder_as_it_was(world: World, copied: RewardModel, tmp_path) -> None:
    def files() -> dict[str, bytes]:
        paths = (tmp_path / "model").rglob("*")
        return {str(p): p.read_bytes() for p in paths if p.is_file() and p.name != "writer.lock"}

    before = files()
    good = replace(world.bases[0], episode_id="good")
    for bad in (world.known[0], Episode("mute", good.steps)):
        with pytest.raises(EpisodeError):
            copied.update([good, bad])
    assert files() == before
    copied.update([good])
    assert files() != before  # the control: an update that is accepted does leave a trace
    copied.close()
    payload = json.dumps([good.to_dict()]).encode()
    assert any(payload in content for content in files().values())


# --- what is no episode ---


@pytest.mark.parametrize(
    ("handed_over", "message"),
    [
        ("runs.jsonl", r"a path, not episodes; `read_episodes\('runs.jsonl'\)`"),
        (Path("runs.jsonl"), r"a path, not episodes; `read_episodes\('runs.jsonl'\)`"),
        (None, "must be a list of Episode, not None"),
        (Episode("a", (Step((0.0, 1.0)),)), "must be a list of Episode, not Episode"),
        ([{"episode_id": "a"}], r"\[0\]: must be an Episode, not {.*`Episode.from_dict`"),
        (["a"], r"\[0\]: must be an Episode, not 'a'"),
    ],
)
def test_what_is_no_list_of_episodes_is_named(handed_over: Any, message: str) -> None:
    model = RewardModel.create(ArrayEncoder(2, features=8), QUICK)
    for name, use in (("episodes", RewardModel.fit), ("rollouts", model.score), ("episodes", model.update)):
        with pytest.raises(EpisodeError, match=name + r".*" + message):
            use(handed_over)
    with pytest.raises(EpisodeError, match="rollout"):
        model.explain(handed_over if handed_over is not None and not isinstance(handed_over, Episode) else [])


def test_wrong_parts_and_questions_are_named() -> None:
    model = RewardModel.create(ArrayEncoder(2, features=8), QUICK)
    with pytest.raises(TypeError, match=r"encoder: must be an encoder, such as TextEncoder\('mini'\)"):
        RewardModel.create("mini")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config: must be a FitConfig"):
        RewardModel.fit([], config={"epochs": 1})  # type: ignore[arg-type]
    for ask in (model.potential, model.novelty):
        with pytest.raises(EpisodeError, match="observations: must be a list of them"):
            ask("a hall")  # whose letters are no observations
        with pytest.raises(EpisodeError, match="observations: must be a list of them"):
            ask(None)  # type: ignore[arg-type]
        with pytest.raises(EpisodeError, match="goal: must be text or null, not 3"):
            ask([(0.0, 1.0)], 3)  # type: ignore[arg-type]
    with pytest.raises(EpisodeError, match="goal: must be text or null, not 3"):
        model.recall((0.0, 1.0), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps: must be at least 1, got 0"):
        model.recall((0.0, 1.0), steps=0)
    with pytest.raises(TypeError, match="net: must be an InstrumentalNet"):
        RewardModel.fit([], net="net")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"encoder: must be an encoder, such as TextEncoder\('mini'\)"):
        RewardModel.load("anywhere", encoder="mini")  # type: ignore[arg-type]
    with pytest.raises(EpisodeError, match="steps: must be a list of Step, not Step"):
        Episode("a", Step("x"))  # type: ignore[arg-type]
