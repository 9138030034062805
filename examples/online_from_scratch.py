"""A value graph that grows from nothing: an agent learns a house by the memories of its own episodes.

    pip install 'valuegraph[gym]'
    python examples/online_from_scratch.py                  # some seconds
    python examples/online_from_scratch.py --novelty 0      # how long it waits for its first success

The house is made of words: a key, a locked door, rooms that lead astray, and a reward of 1 at the very end.
One and the same Q-learning agent plays it twice, with the reward of the house alone and with the reward
shaped by the graph: gamma * Psi(s') - Psi(s), Psi being the value of the state in a memory that is empty
at first and gets every finished episode. Shaping changes how soon the way is found, not which way is best.

--novelty: weight of what is new, which finds the first success sooner.
--episodes: at most so many; an agent stops when 16 of its last 20 episodes succeeded.
"""

import argparse
import random
from collections import defaultdict, deque

import gymnasium as gym

from valuegraph import FitConfig, RewardModel, TextEncoder
from valuegraph.integrations.gym import ValueRewardWrapper

GOAL = "take the treasure out of the vault"
GAMMA = 0.97
DOORS = {
    "hall": ("kitchen", "library", "cellar stairs"),
    "kitchen": ("hall", "pantry", "garden"),
    "pantry": ("kitchen",),
    "garden": ("kitchen", "shed"),
    "shed": ("garden",),
    "library": ("hall", "study", "attic"),
    "study": ("library",),
    "attic": ("library",),
    "cellar stairs": ("hall", "wine cellar", "vault"),
    "wine cellar": ("cellar stairs",),
    "vault": ("cellar stairs",),
}


class House(gym.Env):
    """The key lies in the shed. The vault, which it opens, is at the end of the cellar stairs."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Discrete(8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room, self.key, self.steps = "hall", False, 0
        return self.look(), {"commands": self.commands()}

    def commands(self):
        said = [f"go to the {room}" for room in DOORS[self.room]]
        if self.room == "shed" and not self.key:
            said.append("take the key")
        if self.room == "vault":
            said.append("take the treasure")
        return [*said, "wait", "drop the key"] if self.key else [*said, "wait"]

    def look(self):
        held = "a heavy key" if self.key else "nothing"
        doors = " and the ".join(DOORS[self.room])
        return f"You are in the {self.room}. There are doors to the {doors}. You hold {held}."

    def step(self, command):
        won = command == "take the treasure"
        if command == "take the key":
            self.key = True
        elif command == "drop the key":
            self.key = False  # somebody carries it back to the shed
        elif command.startswith("go to the ") and (self.key or command != "go to the vault"):
            self.room = command.removeprefix("go to the ")
        self.steps += 1
        return self.look(), float(won), won, self.steps >= 40 and not won, {"commands": self.commands()}


def learn(env, most, seed=0):
    """Episodes until 16 of 20 succeed, and the episode of the first success."""
    rng, q, recent, first = random.Random(seed), defaultdict(float), deque(maxlen=20), None
    for episode in range(1, most + 1):
        observation, info = env.reset()
        done = False
        while not done:
            commands = info["commands"]
            best = max(q[observation, c] for c in commands)
            good = [c for c in commands if q[observation, c] == best]
            command = rng.choice(commands if rng.random() < 0.2 else good)
            after, reward, terminated, truncated, info = env.step(command)
            ahead = 0.0 if terminated else max(q[after, c] for c in info["commands"])
            q[observation, command] += 0.5 * (reward + GAMMA * ahead - q[observation, command])
            observation, done = after, terminated or truncated
        recent.append(terminated)
        first = first or (episode if terminated else None)
        if sum(recent) >= 16:
            return episode, first
    return most, first


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--novelty", type=float, default=0.03)
    parser.add_argument("--episodes", type=int, default=2000)
    options = parser.parse_args()

    model = RewardModel.create(TextEncoder(), FitConfig(evidence="observation", merge=1.0))
    shaped = ValueRewardWrapper(
        House(),
        model,
        goal=GOAL,
        mode="shaping",
        scale=0.5,
        gamma=GAMMA,
        novelty_bonus=options.novelty,
        update_every=1,
    )
    for name, env in (("the reward alone", House()), ("a graph from nothing", shaped)):
        episodes, first = learn(env, options.episodes)
        print(f"{name}: first success in episode {first}, learned after {episodes}")
    print(model.graph.episodes, "episodes make", len(model.graph), "memories. The way it remembers:")
    print(model.recall(House().reset()[0], GOAL))


if __name__ == "__main__":
    main()
