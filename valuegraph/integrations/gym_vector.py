"""The Gymnasium wrapper's twin for vector environments, whichever way they reset themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from valuegraph.integrations._growing import GrowingEpisodes, Move
from valuegraph.integrations._rollouts import load_model

try:
    from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
    from gymnasium.vector.utils import iterate
except ImportError as error:
    raise ImportError(f"{error}; pip install 'valuegraph[gym]'") from error

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["ValueRewardVectorWrapper"]


class ValueRewardVectorWrapper(VectorWrapper):
    """`ValueRewardWrapper` for vector environments; the keyword arguments are the same.

    `describe`, `goal` and `outcome` see one environment at a time: its observation, action and info. With
    NEXT_STEP autoreset the step after an end returns the observation of a reset, which is not scored: its
    reward stays the environment's, which is zero. With SAME_STEP the true last observation is in
    `infos["final_obs"]`. With autoreset disabled, `reset(options={"reset_mask": ...})` begins what it resets.
    """

    def __init__(
        self, env: VectorEnv, rm_or_path: RewardModel | str | os.PathLike[str], **settings: Any
    ) -> None:
        super().__init__(env)
        self.autoreset_mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.episodes = GrowingEpisodes(load_model(rm_or_path), env.num_envs, **settings)
        self._over = np.zeros(env.num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the episodes of all environments, or of those in `options["reset_mask"]`."""
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.array(options["reset_mask"])  # the environment removes it from the options
        observations, infos = self.env.reset(seed=seed, options=options)
        rows = list(iterate(self.env.observation_space, observations))
        self.episodes.begin((i, rows[i], _info(infos, i)) for i in np.flatnonzero(mask).tolist())
        self._over[mask] = False
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of all environments, with the reward of the model."""
        chosen = list(iterate(self.env.action_space, actions))
        observations, own, terminated, truncated, infos = self.env.step(actions)
        rows = list(iterate(self.env.observation_space, observations))
        done, same = terminated | truncated, self.autoreset_mode == AutoresetMode.SAME_STEP
        fresh = self._over & (self.autoreset_mode == AutoresetMode.NEXT_STEP)
        moves = []
        for i in np.flatnonzero(~fresh).tolist():
            observation, info = rows[i], _info(infos, i)
            if same and done[i]:
                observation, info = infos["final_obs"][i], _info(infos["final_info"], i)
            moves.append(
                Move(i, observation, chosen[i], float(own[i]), bool(terminated[i]), bool(truncated[i]), info)
            )
        rewards, values = np.array(own, np.float64), np.zeros(self.num_envs)
        for move, (reward, value) in zip(moves, self.episodes.step(moves), strict=True):
            rewards[move.row], values[move.row] = reward, value
        begun = done if same else fresh
        self.episodes.begin((i, rows[i], _info(infos, i)) for i in np.flatnonzero(begun).tolist())
        self._over = done
        infos = {"original_reward": np.array(own), "_original_reward": ~fresh, **infos}
        return observations, rewards, terminated, truncated, {**infos, "value": values, "_value": ~fresh}

    def close(self, **kwargs: Any) -> None:
        """Hand the episodes that are still waiting to the memory, and close."""
        self.episodes.flush()
        super().close(**kwargs)


def _info(infos: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The info of one environment: what the masks `_key` say that it has."""
    own = {}
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None or not mask[i]:
            continue
        own[key] = _info(values, i) if isinstance(values, Mapping) else values[i]
    return own
