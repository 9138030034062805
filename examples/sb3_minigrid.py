"""Stable-Baselines3's PPO in MiniGrid, with a reward that a value graph shapes while it grows.

    pip install 'valuegraph[gym]'
    python examples/sb3_minigrid.py                  # a minute or two on two cores
    python examples/sb3_minigrid.py --steps 2000     # only to see that it runs

One layout of MiniGrid-DoorKey-5x5: fetch the key, open the door, reach the green square, and nothing is paid
before. The agent sees six numbers (where it is, where it looks, whether it holds the key, whether the door is
open) and so does the memory, which is empty at first and gets every finished episode. PPO learns twice with
the same settings, with the environment's reward alone and with `ValueRewardVecEnv` around the environments.
"""

import argparse
import time

import gymnasium as gym
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from valuegraph import ArrayEncoder, FitConfig, RewardModel
from valuegraph.integrations.sb3 import ValueRewardVecEnv

GAMMA, LAYOUT, ENVS = 0.97, 3, 8


class Numbers(gym.Wrapper):
    """One layout of DoorKey as six numbers; the first five actions, as the others do nothing here."""

    def __init__(self):
        super().__init__(gym.make("MiniGrid-DoorKey-5x5-v0", max_steps=100))
        self.observation_space = gym.spaces.Box(-1.0, 5.0, (6,), np.float32)
        self.action_space = gym.spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        _, info = self.env.reset(seed=LAYOUT, options=options)
        return self.numbers(), info

    def step(self, action):
        _, reward, terminated, truncated, info = self.env.step(int(action))
        return self.numbers(), float(reward), terminated, truncated, info

    def numbers(self):
        grid = self.env.unwrapped
        doors = [cell for cell in grid.grid.grid if cell is not None and cell.type == "door"]
        ahead = grid.dir_vec
        state = [*grid.agent_pos, *ahead, grid.carrying is not None, doors[0].is_open]
        return np.array(state, np.float32)


def successes(agent, episodes=20):
    """Share of episodes in which the agent, acting as it does in training, reaches the green square."""
    env, won = Numbers(), 0
    for _ in range(episodes):
        observation, _ = env.reset()
        done = False
        while not done:
            action, _ = agent.predict(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
        won += reward > 0
    return won / episodes


def train(venv, steps, seed):
    start = time.perf_counter()
    agent = PPO(
        "MlpPolicy", venv, n_steps=128, batch_size=256, gamma=GAMMA, ent_coef=0.01, device="cpu", seed=seed
    )
    agent.learn(steps)
    return agent, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    plain = DummyVecEnv([Numbers] * ENVS)
    agent, seconds = train(plain, options.steps, options.seed)
    print(f"the reward alone: {successes(agent):.0%} successes ({seconds:.0f} s)")

    # A bandwidth below one keeps neighbouring cells apart.
    model = RewardModel.create(ArrayEncoder(6, bandwidth=0.4), FitConfig(evidence="observation", merge=1.0))
    shaped = ValueRewardVecEnv(
        DummyVecEnv([Numbers] * ENVS),
        model,
        mode="shaping",
        gamma=GAMMA,
        novelty_bonus=0.1,
        update_every=ENVS,
    )
    agent, seconds = train(shaped, options.steps, options.seed)
    print(f"shaped by a graph from nothing: {successes(agent):.0%} successes ({seconds:.0f} s)")
    print(f"{model.graph.episodes} episodes make {len(model.graph)} memories")


if __name__ == "__main__":
    main()
