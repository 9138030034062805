"""A transform for TorchRL environments that shapes their reward with a reward model's potential.

    env = TransformedEnv(env, Compose(RewardSum(), ValueShaping(rm, goal="reach the exit")))

`RewardSum` first keeps the environment's own return, in `episode_reward`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from valuegraph.integrations._rollouts import ModelHandle, flat, observed

try:
    import torch
    from tensordict import TensorDictBase
    from torchrl.data import Composite, Unbounded
    from torchrl.envs import Transform
except ImportError as error:
    raise ImportError(f"{error}; pip install 'valuegraph[torchrl]'") from error

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["ValueShaping"]

MODES = ("add", "replace")


class ValueShaping(Transform):
    """Potential-based shaping, F = gamma * Psi(s') - Psi(s), of an environment or of a replay buffer.

    Psi in [0, 1] is the model's potential; it is 0 after a terminal state and stays after a time limit (Ng,
    Harada & Russell 1999).

    mode: "add" F to the reward, or "replace" the reward by it.
    gamma: of the agent.
    describe: tensordict of one environment at one time -> text or vector, as the model was fitted on; by
        default what stands under `observation_key`, numbers flat.

    It remembers nothing between steps, so partial resets and batches of environments of any shape are safe.
    """

    def __init__(
        self,
        rm_or_path: RewardModel | str | os.PathLike[str],
        *,
        goal: str | None = None,
        mode: str = "add",
        gamma: float = 0.99,
        describe: Callable[[TensorDictBase], str | Sequence[float]] | None = None,
        observation_key: str = "observation",
        reward_key: str = "reward",
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}, expected one of {MODES}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma}, must be in [0, 1]")
        super().__init__(in_keys=[observation_key, reward_key], out_keys=[reward_key])
        self.goal, self.mode, self.gamma = goal, mode, gamma
        self.observation_key, self.reward_key = observation_key, reward_key
        self.describe = describe
        self._handle = ModelHandle(rm_or_path)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        before, after = self._observations(tensordict), self._observations(next_tensordict)
        psi = torch.as_tensor(self._handle.model.potential([*before, *after], self.goal))
        reward = next_tensordict[self.reward_key]
        ended = next_tensordict.get("terminated", next_tensordict.get("done"))
        now, then = psi.to(reward).split(len(before))
        shaping = self.gamma * then.reshape(reward.shape).masked_fill(ended, 0.0) - now.reshape(reward.shape)
        next_tensordict[self.reward_key] = reward + shaping if self.mode == "add" else shaping
        return next_tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Shape the rewards of transitions that were collected without, as a replay buffer hands them out."""
        return tensordict.set("next", self._step(tensordict, tensordict["next"]))

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        """Shaping leaves whatever bounds the reward had."""
        spec = reward_spec[self.reward_key]
        reward_spec[self.reward_key] = Unbounded(shape=spec.shape, device=spec.device, dtype=spec.dtype)
        return reward_spec

    def _observations(self, tensordict: TensorDictBase) -> list[str | tuple[float, ...]]:
        rows: Any = tensordict.reshape(-1) if tensordict.batch_dims else [tensordict]
        return [observed(self.describe(row) if self.describe else self._stored(row)) for row in rows]

    def _stored(self, row: TensorDictBase) -> str | tuple[float, ...]:
        value = row[self.observation_key]
        return value if isinstance(value, str) else flat(value.detach().cpu())
