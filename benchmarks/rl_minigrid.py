"""Does it help learning? Tabular Q-learning in a MiniGrid maze, with and without a value graph.

    python benchmarks/rl_minigrid.py [--fast] [--layouts N ...] [--seeds N] [--out FOLDER]

The maze is MiniGrid-ObstructedMaze-2Dlhb-v1 in words (`TextMiniGrid`): an action is a command such as "pick
up the purple key", and the reward is 1 for the blue ball, seven commands away at best, and 0 for all else.
An agent learns until 80 % of its last 20 episodes succeeded, 30 commands each; counted are episodes. It is
epsilon-greedy, breaks ties at random, and is the same in every row; rows differ in the potential Psi alone,
which shapes the reward by gamma * Psi(s') - Psi(s):

* sparse: none.
* random potential (control): a number in [0, 1] drawn from the text of a state.
* goal similarity: cosine of the embeddings of state and goal.
* graph from nothing: a reward model that begins empty and gets every finished episode.
* the same with the novelty bonus.
* graph of other layouts: a memory of episodes in other layouts of this maze and in related mazes, none of
  which is won by the same commands as this one; it never sees an episode of this maze.
* the same and a graph from nothing with the novelty bonus, one wrapper around the other.
* exact progress (oracle): 1 - commands left / commands needed, -1 where the maze cannot be won any more.
"""

# ruff: noqa: E402 (thread counts are read when numpy and torch load)

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import gymnasium as gym
import numpy as np

from benchmarks.environments.minigrid_text import PLAYERS, MiniGridWorld, TextMiniGrid
from examples.make_demo_data import play_all
from valuegraph import Episode, FitConfig, RewardModel, Step, TextEncoder
from valuegraph.integrations.gym import ValueRewardWrapper

ENV_ID = "MiniGrid-ObstructedMaze-2Dlhb-v1"
RELATED = {
    ENV_ID: range(13),
    "MiniGrid-ObstructedMaze-1Dl-v0": range(6),
    "MiniGrid-ObstructedMaze-1Dlh-v0": range(6),
    "MiniGrid-ObstructedMaze-2Dl-v0": range(6),
    "MiniGrid-ObstructedMaze-2Dlh-v0": range(6),
}
COMMANDS, CAP = 30, 3000
WINDOW, MASTERED = 20, 0.8
ALPHA, GAMMA, EPSILON = 0.5, 0.97, 0.2
NOVELTY, SCALE = 0.03, 0.5
TARGETS = {"graph from nothing": 250, "graph from nothing, novelty": 150, "graph of other layouts": 100}


def here(observation: str, action: Any, info: Any) -> tuple[str, str | None]:
    """The state in words, without the message that the last command was answered with."""
    return observation[observation.rindex("You see") :], action


# --- potentials that are not the library's ------------------------------------------------------------------


class Shaped(gym.Wrapper):
    """gamma * Psi(s') - Psi(s) for a Psi of the maze and the state in words."""

    def __init__(self, env: TextMiniGrid, psi: Callable[[TextMiniGrid, str], float]) -> None:
        super().__init__(env)
        self.psi, self.before = psi, 0.0

    def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self.before = self.psi(self.env, here(observation, None, info)[0])
        return observation, info

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = 0.0 if terminated else self.psi(self.env, here(observation, action, info)[0])
        shaped = float(reward) + GAMMA * after - self.before
        self.before = after
        return observation, shaped, terminated, truncated, {**info, "original_reward": reward}


def exact_progress(maze: TextMiniGrid) -> Callable[[TextMiniGrid, str], float]:
    maze.reset()
    needed = len(maze.plan())

    def psi(env: TextMiniGrid, text: str) -> float:
        plan = env.plan()
        return -1.0 if plan is None else 1.0 - len(plan) / needed

    return psi


def goal_similarity(encoder: TextEncoder) -> Callable[[TextMiniGrid, str], float]:
    cosine = cache(lambda text, goal: float(np.dot(*encoder.encode([text, goal]))))
    return lambda env, text: cosine(text, env.goal)


def drawn(seed: int) -> Callable[[TextMiniGrid, str], float]:
    return cache(lambda env, text: random.Random(f"{seed} {text}").random())


# --- potentials that are ------------------------------------------------------------------------------------


def empty(encoder: TextEncoder) -> RewardModel:
    """A memory in which every state that differs is a node by itself."""
    return RewardModel.create(encoder, FitConfig(evidence="observation", merge=1.0, device="cpu"))


def of_other_layouts(encoder: TextEncoder, maze: TextMiniGrid, fast: bool) -> RewardModel:
    """A memory of the episodes of players good and bad; what looks alike there is one node."""
    config = FitConfig(evidence="observation", gamma=0.95, merge=0.995, device="cpu")
    model = RewardModel.create(encoder, config)
    model.update(list(related_episodes(maze, 2 if fast else None)))
    return model


def related_episodes(maze: TextMiniGrid, layouts: int | None) -> Iterator[Episode]:
    plan = maze.plan()
    for env_id, numbers in RELATED.items():
        for number in list(numbers)[:layouts]:
            other = TextMiniGrid(env_id, number)
            if other.plan() == plan or (env_id, number) == (maze.env_id, maze.layout_seed):
                continue
            task = f"{env_id}/{number}"
            for episode, _ in play_all(MiniGridWorld(other), PLAYERS, prefix="", task=task, env="minigrid"):
                steps = tuple(Step(here(s.observation, None, None)[0], s.action) for s in episode.steps)
                yield Episode(
                    episode.episode_id,
                    steps,
                    episode.goal,
                    episode.outcome,
                    terminated=episode.terminated,
                    truncated=episode.truncated,
                )


def shaped_by(env: gym.Env, model: RewardModel, scale: float, novelty: float, learns: bool) -> gym.Env:
    return ValueRewardWrapper(
        env,
        model,
        describe=here,
        goal=lambda info: info["goal"],
        mode="shaping",
        scale=scale,
        gamma=GAMMA,
        novelty_bonus=novelty,
        update_every=int(learns),
    )


# --- the agent ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One agent's learning."""

    episodes: int
    """Until the maze was mastered; the cap where it never was."""
    mastered: bool
    first_success: int | None
    seconds: float


def learn(env: gym.Env, seed: int, cap: int = CAP) -> Run:
    """Tabular Q-learning on the true state, epsilon-greedy, ties broken at random."""
    rng, q = random.Random(seed), defaultdict(float)
    recent: deque[bool] = deque(maxlen=WINDOW)
    first, start, maze = None, time.perf_counter(), env.unwrapped
    for episode in range(1, cap + 1):
        _, info = env.reset()
        terminated = truncated = False
        while not (terminated or truncated):
            state, offered = maze.state, info["admissible"]
            if rng.random() < EPSILON:
                action = rng.choice(offered)
            else:
                best = max(q[state, a] for a in offered)
                action = rng.choice([a for a in offered if q[state, a] == best])
            _, reward, terminated, truncated, info = env.step(action)
            ahead = 0.0 if terminated else max(q[maze.state, a] for a in info["admissible"])
            q[state, action] += ALPHA * (reward + GAMMA * ahead - q[state, action])
        recent.append(maze.won)
        first = first or (episode if maze.won else None)
        if len(recent) == WINDOW and sum(recent) >= MASTERED * WINDOW:
            return Run(episode, True, first, time.perf_counter() - start)
    return Run(cap, False, first, time.perf_counter() - start)


def interval(numbers: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(numbers, (10_000, len(numbers)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def rows(layout: int, encoder: TextEncoder, fast: bool) -> dict[str, Callable[[int], gym.Env]]:
    """Name of each row -> seed -> environment."""
    maze = TextMiniGrid(ENV_ID, layout, COMMANDS)
    oracle, similarity = exact_progress(maze), goal_similarity(encoder)
    others = of_other_layouts(encoder, maze, fast)

    def grown(env: gym.Env, scale: float, novelty: float) -> gym.Env:
        return shaped_by(env, empty(encoder), scale, novelty, learns=True)

    def known(scale: float) -> gym.Env:
        return shaped_by(maze, others, scale, 0.0, learns=False)

    return {
        "sparse": lambda seed: maze,
        "random potential": lambda seed: Shaped(maze, drawn(seed)),
        "goal similarity": lambda seed: Shaped(maze, similarity),
        "graph from nothing": lambda seed: grown(maze, SCALE, 0.0),
        "graph from nothing, novelty": lambda seed: grown(maze, SCALE, NOVELTY),
        "graph of other layouts": lambda seed: known(1.0),
        "graph of other layouts, then its own, novelty": lambda seed: grown(known(SCALE), SCALE, NOVELTY),
        "exact progress": lambda seed: Shaped(maze, oracle),
    }


def measure(layout: int, seeds: int, cap: int, fast: bool, encoder: TextEncoder) -> dict[str, Any]:
    """Every row with every seed."""
    report = {"environment": ENV_ID, "layout": layout, "seeds": seeds, "cap": cap, "rows": {}}
    for name, make in rows(layout, encoder, fast).items():
        runs = [learn(make(seed), seed, cap) for seed in range(seeds)]
        episodes = [run.episodes for run in runs]
        firsts = [run.first_success or cap for run in runs]
        report["rows"][name] = {
            "median": float(np.median(episodes)),
            "interval": interval(episodes),
            "mastered": sum(run.mastered for run in runs),
            "first_success": float(np.median(firsts)),
            "target": TARGETS.get(name),
            "runs": [asdict(run) for run in runs],
        }
        print(f"{name}: {report['rows'][name]['median']:g} {episodes}", flush=True)
    return report


def markdown(report: dict[str, Any]) -> str:
    """The table that people read."""
    lines = [
        f"## Layout {report['layout']}",
        "",
        f"{report['environment']}, {report['seeds']} seeds, cap {report['cap']:,}.",
        "",
        "| potential | median | 95 % interval | first success | mastered | target |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        low, high = row["interval"]
        target = "" if row["target"] is None else f"at most {row['target']}"
        lines.append(
            f"| {name} | {row['median']:g} | {low:g} to {high:g} | {row['first_success']:g} | "
            f"{row['mastered']} of {report['seeds']} | {target} |"
        )
    return "\n".join(lines)


HEAD = """# Does it help learning?

By `python -m benchmarks.rl_minigrid`: tabular Q-learning in a maze in words, the same agent in every row, its
reward shaped by another potential. Counted are the episodes until 80 % of the last 20 succeed (median of the
seeds, 95 % bootstrap interval) and those until the first success; fewer is better. The mazes that "graph of
other layouts" has seen are not won by the same commands as this one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="two seeds, 60 episodes: does it run at all?")
    parser.add_argument("--layouts", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cache", type=Path, help="folder where embeddings outlive the run")
    parser.add_argument("--out", type=Path, help="folder for rl_minigrid.json and rl_minigrid.md")
    options = parser.parse_args()
    seeds, cap = (2, 60) if options.fast else (options.seeds, CAP)
    encoder = TextEncoder(cache_dir=options.cache)
    reports = [measure(layout, seeds, cap, options.fast, encoder) for layout in options.layouts]
    page = "\n\n".join([HEAD, *map(markdown, reports)])
    print(page)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "rl_minigrid.json").write_text(json.dumps(reports, indent=1) + "\n")
        (options.out / "rl_minigrid.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
