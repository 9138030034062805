"""A Gymnasium wrapper whose reward comes from a reward model, which may grow from the agent's own episodes.

    rm = RewardModel.create(config=FitConfig(evidence="observation"))  # an empty memory
    env = ValueRewardWrapper(env, rm, goal="open the door", mode="shaping", gamma=0.99, update_every=1)

Vector environments: `valuegraph.integrations.gym_vector`; Stable-Baselines3: `valuegraph.integrations.sb3`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, SupportsFloat

from valuegraph.integrations._growing import (
    Describe,
    Goal,
    GrowingEpisodes,
    Move,
    Outcome,
    as_it_is,
    succeeded,
)
from valuegraph.integrations._rollouts import load_model

try:
    import gymnasium
except ImportError as error:
    raise ImportError(f"{error}; pip install 'valuegraph[gym]'") from error

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["ValueRewardWrapper"]


class ValueRewardWrapper(gymnasium.Wrapper):
    """Replaces, adds to, or shapes the reward of an environment.

    mode: "replace", U_t - U_(t-1) of the growing episode; "add", the same on top of the environment's reward;
        "shaping", the environment's reward plus gamma * Psi(s') - Psi(s), which changes no optimal policy.
        `GrowingEpisodes` states the three precisely. The growing episode is scored anew at every step,
        which suits episodes of up to some hundred steps; a potential is read once per state and update.
    describe: (observation, action, info) -> (text or vector, action in words), as the model's episodes have
        them; the action of a reset is None. By default the observation as it is.
    goal: text, or info of the reset -> text; None for none.
    scale: factor of U and Psi.
    gamma: discount of the agent, in [0, 1]; used by "shaping" and by the novelty bonus.
    novelty_bonus: weight of a state's novelty, as a potential; finds the first success sooner. Novelty wears
        off by updates, so it needs `update_every`.
    update_every: finished episodes go to `rm.update` that many at a time; 0 never.
    outcome: (last info, return, terminated) -> outcome in [0, 1], None if unknown; by default what info says
        under "success" or "is_success", else whether the episode terminated with a return above zero.

    `info["original_reward"]` keeps the reward of the environment (stacked wrappers: of the innermost), and
    `info["value"]` is U_t or Psi(s_t). A time limit has to sit inside of this wrapper; an episode that is
    reset before it ends leaves no trace in the memory.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        rm_or_path: RewardModel | str | os.PathLike[str],
        *,
        describe: Describe = as_it_is,
        goal: Goal = None,
        mode: str = "shaping",
        scale: float = 1.0,
        gamma: float = 0.99,
        novelty_bonus: float = 0.0,
        update_every: int = 0,
        outcome: Outcome = succeeded,
    ) -> None:
        super().__init__(env)
        self.episodes = GrowingEpisodes(
            load_model(rm_or_path),
            1,
            describe=describe,
            goal=goal,
            mode=mode,
            scale=scale,
            gamma=gamma,
            novelty_bonus=novelty_bonus,
            update_every=update_every,
            outcome=outcome,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.episodes.begin([(0, observation, info)])
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step, with the reward of the model."""
        observation, own, terminated, truncated, info = self.env.step(action)
        move = Move(0, observation, action, float(own), bool(terminated), bool(truncated), info)
        reward, value = self.episodes.step([move])[0]
        info = {"original_reward": own, **info, "value": value}
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Hand the episodes that are still waiting to the memory, and close."""
        self.episodes.flush()
        super().close()
