"""PPO and DQN train for real on wrapped environments, whose ends SB3 hides behind the next reset."""

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from benchmarks.environments.corridor import CELLS, Corridor, cells, empty_model, grown_model
from valuegraph import ArrayEncoder, Episode, FitConfig, RewardModel, Step
from valuegraph.credit import potential_shaping
from valuegraph.integrations.gym import ValueRewardWrapper
from valuegraph.integrations.sb3 import ValueRewardVecEnv

GAMMA = 0.9
NET = {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def rm():
    return grown_model()


def corridors(rows=2):
    return DummyVecEnv([lambda: Corridor(max_steps=6)] * rows)


def run(venv, *scripts):
    """Rewards and infos of every environment along its script."""
    venv.reset()
    steps = [venv.step(np.array(actions)) for actions in zip(*scripts, strict=True)]
    return np.array([step[1] for step in steps]).T, list(zip(*[step[3] for step in steps], strict=True))


def test_the_true_last_observation_is_scored(rm):
    won_then_on, cut_then_on = [1, 1, 1, 1, 1, 1, 0], [1, 0, 1, 0, 1, 0, 1]
    rewards, infos = run(ValueRewardVecEnv(corridors(), rm, gamma=GAMMA), won_then_on, cut_then_on)

    def shaping(*visited, terminated=False):
        return potential_shaping(rm.potential([s.observation for s in cells(*visited)]), GAMMA, terminated)

    won = np.array([0, 0, 0, 1]) + shaping(1, 2, 3, 4, 5, terminated=True)
    np.testing.assert_allclose(rewards[0], [*won, *shaping(1, 2, 3, 2)], atol=1e-5)
    np.testing.assert_allclose(rewards[1], [*shaping(1, 2, 1, 2, 1, 2, 1), *shaping(1, 2)], atol=1e-5)
    assert [info["original_reward"] for info in infos[0]] == [0, 0, 0, 1, 0, 0, 0]
    assert [bool(info.get("TimeLimit.truncated")) for info in infos[1]] == [False] * 5 + [True, False]
    # Control: the observation that comes back with the end is that of the reset, and worth something else.
    assert abs(infos[1][5]["value"] - shaping(5, 1)[0]) > 0.01


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_scores_are_those_of_single_environments(rm, mode):
    script = [1, 1, 1, 1]
    single = ValueRewardWrapper(Corridor(), rm, mode=mode)
    single.reset()
    expected = [single.step(action)[1] for action in script]
    rewards, _ = run(ValueRewardVecEnv(corridors(), rm, mode=mode), script, script)
    np.testing.assert_allclose(rewards, [expected] * 2, atol=1e-5)


def test_sb3_accepts_the_single_environment(rm):
    check_env(ValueRewardWrapper(Corridor(), rm), warn=True, skip_render_check=True)


def test_monitors_tell_whose_return_they_report(rm):
    venv = VecMonitor(ValueRewardVecEnv(corridors(1), rm, mode="replace"))
    _, (infos,) = run(venv, [1, 1, 1, 1])
    assert infos[-1]["episode"]["r"] == pytest.approx(infos[-1]["value"] - first_value(rm), abs=1e-5)
    inner = ValueRewardVecEnv(
        make_vec_env(Corridor, n_envs=1), rm, mode="replace"
    )  # with a Monitor of its own
    _, (infos,) = run(inner, [1, 1, 1, 1])
    assert infos[-1]["episode"]["r"] == 1.0


def first_value(rm):
    return rm.score([Episode("start", cells(1))], ongoing=True).total[0]


def test_ppo_grows_a_memory_from_nothing():
    rm = empty_model()
    venv = ValueRewardVecEnv(corridors(4), rm, gamma=GAMMA, novelty_bonus=0.1, update_every=4)
    agent = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=2, gamma=GAMMA, **NET)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(512)
    venv.close()
    after = list(agent.policy.parameters())
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))
    assert rm.graph.episodes > 50
    assert 0.0 < rm.graph.goals.reached[0] < rm.graph.goals.tried[0]
    psi = rm.potential([step.observation for step in cells(1, 2, 3, 4)])
    assert (np.diff(psi) > 0.0).all(), psi


def test_dqn_learns_the_way(rm):
    venv = ValueRewardVecEnv(corridors(1), rm, mode="add")
    agent = DQN(
        "MlpPolicy",
        venv,
        learning_starts=50,
        train_freq=1,
        target_update_interval=50,
        learning_rate=5e-3,
        exploration_fraction=0.7,
        gamma=GAMMA,
        **NET,
    ).learn(700)
    on_the_way = np.eye(CELLS, dtype=np.float32)[1:-1]
    assert agent.predict(on_the_way, deterministic=True)[0].tolist() == [1, 1, 1, 1]


def test_ppo_on_cartpole_with_vectors_as_they_are():
    rng = np.random.default_rng(0)
    steps = [tuple(Step(tuple(row)) for row in rng.normal(0.0, 0.05, (12, 4))) for _ in range(6)]
    episodes = [Episode(f"{i}", s, None, float(i % 2), terminated=True) for i, s in enumerate(steps)]
    rm = RewardModel.create(ArrayEncoder.fit(episodes), FitConfig(evidence="observation", device="cpu"))
    venv = ValueRewardVecEnv(
        make_vec_env("CartPole-v1", n_envs=2, seed=0),
        rm,
        update_every=2,
        outcome=lambda info, ret, terminated: min(ret / 100.0, 1.0),
    )
    PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, **NET).learn(256)
    assert rm.graph.episodes >= 4
    assert 0.0 < rm.graph.goals.reached[0] < rm.graph.goals.tried[0]
