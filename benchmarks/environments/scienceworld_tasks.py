"""ScienceWorld: ten tasks of primary-school science, played along and beside the simulator's gold sequences.

Needs the `scienceworld` package and a Java runtime. Progress is the simulator's own score, uneven across
subgoals; it falls only where the agent focuses on the wrong thing, which ends the episode with nothing.
What the simulator draws at random, such as a thermometer's error, comes from one stream per process, so a
recording repeats as a whole split.

Wang et al. 2022, ScienceWorld: Is your Agent Smarter than a 5th Grader?, https://arxiv.org/abs/2203.07540
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from examples.make_demo_data import Played, play_all, roster

TASKS = (
    "boil",
    "melt",
    "use-thermometer",
    "chemistry-mix",
    "chemistry-mix-paint-secondary-color",
    "find-plant",
    "find-animal",
    "find-non-living-thing",
    "test-conductivity",
    "power-component",
)
VARIATIONS = {"train": (0, 1), "dev": (3,), "spent": (5, 7, 9), "test": (11, 13)}
PLAYERS = roster(expert=1, noisy=8, truncated=2, diverted=2, random=2, slips=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4))
OFFERED_PER_VERB = 3
"""Of the hundreds of valid actions, so that a random player does not spend its life pouring things into
things; of "focus", which mostly ends the episode, only one."""


class ScienceWorldTask:
    """One variation of one task at play, as the players of the demo see a world."""

    def __init__(self, env: Any, task: str, variation: int) -> None:
        self._env, self._name = env, f"{task}/{variation}"
        env.load(task, variation, "easy", generateGoldPath=True)
        self._gold: list[str] = env.get_gold_action_sequence()
        self.goal = clean(env.get_task_description())
        self.reset()

    def reset(self) -> str:
        self._env.reset()
        self._plan, self._offers = list(self._gold), random.Random(self._name)
        self._look()
        return clean(self._env.look())

    def step(self, command: str) -> str:
        before = self._room
        observation = self._env.server.step(command)  # the package's step also lists every valid action: slow
        self._look()
        if self._plan and command == self._plan[0]:
            del self._plan[0]
        elif self._room != before:
            self._plan.insert(0, f"go to {before}")
        return clean(observation)

    @property
    def admissible(self) -> list[str]:
        """Up to `OFFERED_PER_VERB` valid actions of each verb, another draw each time."""
        by_verb = defaultdict(list)
        for command in sorted(self._env.get_valid_action_object_combinations()):
            by_verb[command.split()[0]].append(command)
        return [
            command
            for verb, commands in by_verb.items()
            for command in self._offers.sample(
                commands, min(1 if verb == "focus" else OFFERED_PER_VERB, len(commands))
            )
        ]

    @property
    def plan(self) -> list[str] | None:
        """What is left of the gold sequence, and the way back to where it was left; it need not work."""
        return self._plan or ([] if self.won else None)

    @property
    def progress(self) -> float:
        return max(0.0, self._score)

    @property
    def won(self) -> bool:
        return self._score >= 1.0

    @property
    def done(self) -> bool:
        return self.won or self._score < 0 or self._completed

    def _look(self) -> None:
        found = re.search(r"called the ([^.]+)\.|are (?:outside)", self._env.look())
        self._room = (found and found[1]) or "outside"
        self._score, self._completed = (
            float(self._env.server.getScore()),
            bool(self._env.server.getCompleted()),
        )


def clean(text: str) -> str:
    """On one line: the entries of a list are parted by "; "."""
    lines = [line.strip() for line in text.splitlines()]
    return " ".join("; ".join(line for line in lines if line).split())


def episodes(split: str) -> Iterator[Played]:
    """Every task in the variations of one of `benchmarks.environments.SPLITS`, played by `PLAYERS`."""
    from scienceworld import ScienceWorldEnv

    with closing(ScienceWorldEnv("", envStepLimit=10**6)) as env:
        for task in TASKS:
            for variation in VARIATIONS[split]:
                world = ScienceWorldTask(env, task, variation)
                yield from play_all(
                    world, PLAYERS, prefix="sw", task=f"{task}/{variation}", env="scienceworld"
                )
