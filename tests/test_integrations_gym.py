"""Wrapped environments pay what the model's own methods say, step by step, however episodes end."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from benchmarks.environments.corridor import Corridor, cells, empty_model, grown_model
from benchmarks.environments.minigrid_text import TextMiniGrid
from valuegraph import Episode, FitConfig, RewardModel, TextEncoder
from valuegraph.credit import potential_shaping
from valuegraph.integrations.gym import ValueRewardWrapper
from valuegraph.integrations.gym_vector import ValueRewardVectorWrapper

GAMMA = 0.9
ROUNDING = 1e-5
"""Matrix products of other shapes differ in their last bits, on some machines."""
WIN, LOSE, BACK_AND_FORTH = [1, 1, 1, 1], [1, 0, 0], [1, 0, 1, 0, 1, 0]


def play(env, actions):
    """Rewards, infos and the last two flags of one episode."""
    _, info = env.reset(seed=0)
    rewards, infos = [], [info]
    for action in actions:
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        infos.append(info)
    return np.array(rewards), infos, terminated, truncated


def visited(actions):
    return cells(*np.cumsum([1, *(1 if action else -1 for action in actions)]).tolist())


@pytest.fixture(scope="module")
def rm():
    return grown_model()


@pytest.mark.parametrize("actions", [WIN, LOSE, BACK_AND_FORTH])
def test_shaping_is_the_textbook_formula(rm, actions):
    env = ValueRewardWrapper(Corridor(max_steps=6), rm, gamma=GAMMA, scale=2.0)
    rewards, infos, terminated, truncated = play(env, actions)
    psi = 2.0 * rm.potential([step.observation for step in visited(actions)])
    own = np.array([info["original_reward"] for info in infos[1:]])
    assert terminated != truncated
    np.testing.assert_allclose(rewards, own + potential_shaping(psi, GAMMA, terminated), atol=ROUNDING)
    np.testing.assert_allclose([info["value"] for info in infos[1:]], psi[1:], atol=ROUNDING)
    # Control: an end taken for a time limit, or the other way round, pays something else.
    if actions is not LOSE:  # the cell where one loses is worth nothing either way
        assert abs(rewards - own - potential_shaping(psi, GAMMA, not terminated)).max() > 0.05


def test_the_potential_of_a_remembered_state_is_its_value(rm):
    psi = rm.potential([step.observation for step in cells(1, 2, 3, 4, 5)])
    np.testing.assert_allclose(psi, rm.graph.values[:5], rtol=2e-3)
    assert (np.diff(psi) > 0.0).all()


@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("actions", [WIN, LOSE, BACK_AND_FORTH])
def test_scores_are_those_of_the_whole_episode(rm, mode, actions):
    env = ValueRewardWrapper(Corridor(max_steps=6), rm, mode=mode)
    rewards, infos, terminated, _ = play(env, actions)
    whole = Episode("whole", visited(actions), terminated=terminated)
    own = np.array([info["original_reward"] for info in infos[1:]])
    paid = rewards - (own if mode == "add" else 0.0)
    potentials = rm.score([whole]).potentials[0]
    ongoing = rm.score([whole], ongoing=True).potentials[0]
    np.testing.assert_allclose(paid[:-1], np.diff(ongoing)[:-1], atol=ROUNDING)
    np.testing.assert_allclose(ongoing[0] + paid.sum(), potentials[-1], atol=ROUNDING)
    if actions is not BACK_AND_FORTH:  # where nothing counts after the first step, its account stays open
        np.testing.assert_allclose(paid, np.diff(potentials), atol=ROUNDING)
    assert own[-1] == (actions is WIN)
    assert actions is not WIN or rewards.sum() > 0.5


def test_novelty_is_a_potential_too(rm):
    env = ValueRewardWrapper(Corridor(), rm, mode="shaping", gamma=GAMMA, novelty_bonus=0.5)
    rewards, infos, terminated, _ = play(env, WIN)
    states = [step.observation for step in visited(WIN)]
    combined = rm.potential(states) + 0.5 * rm.novelty(states)
    own = np.array([info["original_reward"] for info in infos[1:]])
    np.testing.assert_allclose(rewards, own + potential_shaping(combined, GAMMA, terminated), atol=ROUNDING)


def test_a_memory_grows_from_nothing():
    rm = empty_model()
    env = ValueRewardWrapper(Corridor(max_steps=6), rm, update_every=2, gamma=GAMMA)
    rewards, *_ = play(env, WIN)
    assert rewards.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert rm.graph.episodes == 0
    play(env, BACK_AND_FORTH)
    assert rm.graph.episodes == 2
    assert rm.graph.goals.reached == [1.0]
    # The memory has changed, and with it what was read before.
    rewards, *_ = play(env, WIN)
    psi = rm.potential([step.observation for step in visited(WIN)])
    assert psi[0] > 0.0
    np.testing.assert_allclose(rewards - [0, 0, 0, 1], potential_shaping(psi, GAMMA, True), atol=ROUNDING)
    play(env, [1, 1])  # left in the middle
    env.reset()
    env.close()
    assert rm.graph.episodes == 3


@pytest.mark.parametrize(
    ("info", "ret", "terminated", "outcome"),
    [
        ({}, 1.0, True, 1.0),
        ({}, 1.0, False, 0.0),
        ({}, 0.0, True, 0.0),
        ({"success": True}, 0.0, False, 1.0),
        ({"is_success": np.False_}, 1.0, True, 0.0),
    ],
)
def test_what_counts_as_a_success(info, ret, terminated, outcome):
    from valuegraph.integrations._growing import succeeded

    assert succeeded(info, ret, terminated) == outcome


def test_an_outcome_of_ones_own():
    rm, seen = empty_model(), []

    def outcome(info, ret, terminated):
        seen.append((info["room"], ret, terminated))
        return 0.25

    env = ValueRewardWrapper(Corridor(), rm, update_every=1, outcome=outcome)
    play(env, WIN)
    assert seen == [("corridor", 1.0, True)]
    assert rm.graph.goals.reached == [0.25]


def test_a_state_is_read_once_per_update(monkeypatch):
    rm, read = grown_model(), []
    potential = rm.potential
    monkeypatch.setattr(rm, "potential", lambda states, goal: read.extend(states) or potential(states, goal))
    env = ValueRewardWrapper(Corridor(max_steps=6), rm, update_every=2)
    play(env, BACK_AND_FORTH)
    play(env, [1, 0, 1, 0, 1, 0])
    assert len(read) == 2
    play(env, BACK_AND_FORTH)
    assert len(read) == 4


def test_stacked_wrappers_add_up_and_keep_the_environments_reward(rm):
    inner = ValueRewardWrapper(Corridor(), rm, gamma=GAMMA)
    env = ValueRewardWrapper(inner, rm, gamma=GAMMA, scale=3.0)
    rewards, infos, *_ = play(env, WIN)
    shaping = potential_shaping(rm.potential([s.observation for s in visited(WIN)]), GAMMA, True)
    assert [info["original_reward"] for info in infos[1:]] == [0.0, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(rewards, [0, 0, 0, 1] + 4.0 * shaping, atol=ROUNDING)


@pytest.mark.parametrize("mode", ["replace", "add", "shaping"])
def test_gymnasium_accepts_the_environment(rm, mode):
    env = ValueRewardWrapper(Corridor(), rm, mode=mode, novelty_bonus=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*spec of the environment.*")
        check_env(env, skip_render_check=True)


def test_what_cannot_be_is_named(rm):
    with pytest.raises(ValueError, match="mode='shape'"):
        ValueRewardWrapper(Corridor(), rm, mode="shape")
    with pytest.raises(ValueError, match="gamma=2"):
        ValueRewardWrapper(Corridor(), rm, gamma=2)
    with pytest.raises(ValueError, match="novelty_bonus=-1"):
        ValueRewardWrapper(Corridor(), rm, novelty_bonus=-1)
    with pytest.raises(ValueError, match="update_every=-1"):
        ValueRewardWrapper(Corridor(), rm, update_every=-1)
    with pytest.raises(RuntimeError, match="before reset"):
        ValueRewardWrapper(Corridor(), rm).step(1)


def test_text_and_a_goal_from_info():
    rm = RewardModel.create(TextEncoder(), FitConfig(evidence="observation", device="cpu"))
    told = []

    def describe(observation, action, info):
        told.append(action)
        return observation[observation.index("You see") :], action

    env = ValueRewardWrapper(
        TextMiniGrid("MiniGrid-UnlockPickup-v0", 0),
        rm,
        describe=describe,
        goal=lambda info: info["goal"],
        gamma=1.0,
        update_every=1,
    )
    plan = list(env.unwrapped.plan())
    rewards, *_ = play(env, plan)
    assert rewards[-1] == 1.0
    assert told == [None, *plan]
    assert rm.graph.goals.texts == [env.unwrapped.goal]
    env.reset()
    (start,) = rm.potential([env.unwrapped.describe()], env.unwrapped.goal)
    rewards, infos, *_ = play(env, plan)
    assert all(0.0 < info["value"] <= 1.0 for info in infos[1:])
    # What is paid on the way is taken back at the end, and with it what the start was worth.
    assert start > 0.0
    assert rewards.sum() == pytest.approx(1.0 - start)


def test_a_memory_of_other_evidence_is_warned_of():
    step = RewardModel.create(TextEncoder())
    with pytest.warns(UserWarning, match="evidence='observation'"):
        ValueRewardWrapper(Corridor(), step)


# --- vector environments -----------------------------------------------------------------------------------

SCRIPTS = [WIN, LOSE, BACK_AND_FORTH]


def single(rm, actions, **settings):
    return play(ValueRewardWrapper(Corridor(max_steps=6), rm, **settings), actions)[0].tolist()


def vector(mode, maker=SyncVectorEnv):
    return maker([lambda: Corridor(max_steps=6)] * 3, autoreset_mode=mode)


def drive(env, steps, gap):
    """Rewards of each environment, whose actions follow its script over and over; `gap` steps lie between."""
    scripts = [script + [0] * gap for script in SCRIPTS]
    env.reset(seed=0)
    rewards = []
    for t in range(steps):
        _, reward, terminated, truncated, infos = env.step(
            np.array([script[t % len(script)] for script in scripts])
        )
        rewards.append(reward)
        ended = np.array([t % len(s) == len(s) - 1 - gap for s in scripts])
        assert (terminated | truncated).tolist() == ended.tolist()
        assert infos["original_reward"].tolist() == [
            float(s is SCRIPTS[0] and e) for s, e in zip(SCRIPTS, ended, strict=True)
        ]
    return np.array(rewards).T.tolist()


@pytest.mark.parametrize("settings", [{"mode": "replace"}, {"gamma": GAMMA, "novelty_bonus": 0.3}])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_environments_pay_what_single_ones_pay(rm, mode, settings):
    gap = int(mode == AutoresetMode.NEXT_STEP)
    env = ValueRewardVectorWrapper(vector(mode), rm, **settings)
    got = drive(env, 24, gap)
    for rewards, script in zip(got, SCRIPTS, strict=True):
        once = single(rm, script, **settings) + [0.0] * gap  # the reset in between is not scored
        np.testing.assert_allclose(rewards, (once * 24)[:24], atol=ROUNDING)
    # Control: the state after a reset has a potential, so that scoring the reset would have paid something.
    assert rm.potential([visited([])[0].observation])[0] > 0.1


def test_a_vector_environment_in_other_processes():
    rm = empty_model()
    env = ValueRewardVectorWrapper(vector(AutoresetMode.NEXT_STEP, AsyncVectorEnv), rm, update_every=3)
    drive(env, 8, 1)
    assert rm.graph.episodes == 3
    assert rm.graph.goals.reached == [1.0]
    env.close()
    assert rm.graph.episodes == 4  # the one that was still waiting


def test_resets_by_hand(rm):
    env = ValueRewardVectorWrapper(vector(AutoresetMode.DISABLED), rm, gamma=GAMMA)
    env.reset(seed=0)
    rewards = [env.step(np.array(actions))[1] for actions in zip(*[s[:3] for s in SCRIPTS], strict=True)]
    env.reset(options={"reset_mask": np.array([False, True, False])})  # the second one has lost
    rewards += [env.step(np.array([1, 1, 0]))[1]]
    expected = [single(rm, script, gamma=GAMMA)[:4] for script in SCRIPTS]
    expected[1] += single(rm, LOSE, gamma=GAMMA)[:1]  # begins anew, while the others go on
    np.testing.assert_allclose(np.array(rewards).T, expected, atol=ROUNDING)


def test_the_info_of_one_environment():
    from valuegraph.integrations.gym_vector import _info

    class Told(gym.Wrapper):
        def step(self, action):
            *rest, info = self.env.step(action)
            return *rest, {**info, "cell": {"at": self.env.unwrapped.cell}} if action else info

    env = SyncVectorEnv([lambda: Told(Corridor())] * 2)
    env.reset()
    infos = env.step(np.array([1, 0]))[-1]
    assert _info(infos, 0) == {"room": "corridor", "cell": {"at": 2}}
    assert _info(infos, 1) == {"room": "corridor"}
