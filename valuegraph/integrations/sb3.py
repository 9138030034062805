"""The Gymnasium wrapper's twin for the vector environments of Stable-Baselines3.

venv = ValueRewardVecEnv(make_vec_env("CartPole-v1", n_envs=4), rm, mode="shaping", gamma=0.99)
PPO("MlpPolicy", venv, gamma=0.99).learn(10_000)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from valuegraph.integrations._growing import GrowingEpisodes, Move
from valuegraph.integrations._rollouts import load_model

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
except ImportError as error:
    raise ImportError(f"{error}; pip install 'valuegraph[gym]'") from error

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["ValueRewardVecEnv"]


class ValueRewardVecEnv(VecEnvWrapper):
    """`ValueRewardWrapper` for SB3's vector environments; the keyword arguments are the same.

    `describe`, `goal` and `outcome` see one environment at a time. The last observation of an episode is
    `infos[i]["terminal_observation"]`, and `infos[i]["TimeLimit.truncated"]` tells a time limit from an end.
    A `Monitor` inside keeps reporting the environment's own returns, a `VecMonitor` around this wrapper those
    of the model. DQN and the like replay rewards of earlier memories, so update seldom with them.
    """

    def __init__(
        self, venv: VecEnv, rm_or_path: RewardModel | str | os.PathLike[str], **settings: Any
    ) -> None:
        super().__init__(venv)
        self.episodes = GrowingEpisodes(load_model(rm_or_path), venv.num_envs, **settings)
        self._actions: np.ndarray = np.empty(0)

    def reset(self) -> Any:
        """Begin the episodes of all environments."""
        observations = self.venv.reset()
        self._begin(observations, range(self.num_envs))
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions, which `describe` is told about."""
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """One step of all environments, with the reward of the model."""
        observations, own, dones, infos = self.venv.step_wait()
        moves = []
        for i, (done, info) in enumerate(zip(dones, infos, strict=True)):
            cut = bool(done) and bool(info.get("TimeLimit.truncated", False))
            last = info["terminal_observation"] if done else _of(observations, i)
            moves.append(Move(i, last, self._actions[i], float(own[i]), bool(done) and not cut, cut, info))
        rewards = np.empty(self.num_envs, np.float32)
        for info, move, (reward, value) in zip(infos, moves, self.episodes.step(moves), strict=True):
            rewards[move.row] = reward
            info.setdefault("original_reward", move.reward)
            info["value"] = value
        self._begin(observations, np.flatnonzero(dones).tolist())
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Hand the episodes that are still waiting to the memory, and close."""
        self.episodes.flush()
        super().close()

    def _begin(self, observations: Any, rows: Any) -> None:
        infos = self.venv.reset_infos
        self.episodes.begin((i, _of(observations, i), infos[i] or {}) for i in rows)


def _of(observations: Any, i: int) -> Any:
    """The observation of one environment."""
    if isinstance(observations, dict):
        return {key: value[i] for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(value[i] for value in observations)
    return observations[i]
