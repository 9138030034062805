"""MiniGrid in words: real layouts of the public `minigrid` package, played by macro-commands.

A command is a subgoal ("pick up the purple key"); an observation says what can be reached ("You see a locked
purple door"). `TextMiniGrid` is the Gymnasium environment, with an exact oracle of the commands left. Its
`replay` carries commands out with the primitive actions of the real environment and compares the two grids.

Chevalier-Boisvert et al. 2023, Minigrid & Miniworld, https://arxiv.org/abs/2306.13831
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.environments.minigrid_maze import NEIGHBOURS, Cell, Maze, Motion, State, walk, without_letters
from examples.make_demo_data import Played, part_done, play_all, roster


class TextMiniGrid(gym.Env[str, Any]):
    """One MiniGrid layout as a text game. Reward 1 on success, else 0; truncated after `max_steps` commands.

    An action is a command, or its index in `vocabulary`. An observation is a message and what can be reached.
    `info["admissible"]` lists the commands that the state offers.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, env_id: str, layout_seed: int, max_steps: int = 100) -> None:
        import minigrid  # noqa: F401  (registers the environments)

        self.env_id, self.layout_seed, self.max_steps, self.render_mode = (
            env_id,
            layout_seed,
            max_steps,
            "ansi",
        )
        self.maze = Maze.of(self._real())
        self.goal = self.maze.mission
        self.vocabulary = self.maze.vocabulary()
        self.action_space = gym.spaces.Discrete(len(self.vocabulary))
        self.observation_space = gym.spaces.Text(4000, charset=string.printable)
        self.state, self.won, self.steps = self.maze.start, False, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.won, self.steps = self.maze.start, False, 0
        return f"You wake up. {self.describe()}", self._info()

    def step(self, action: str | int | np.integer) -> tuple[str, float, bool, bool, dict[str, Any]]:
        effect = self.maze.apply(
            self.state, action if isinstance(action, str) else self.vocabulary[int(action)]
        )
        self.state, self.won, self.steps = effect.state, effect.won, self.steps + 1
        observation = f"{effect.message} {self.describe()}"
        return (
            observation,
            float(self.won),
            self.won,
            self.steps >= self.max_steps and not self.won,
            self._info(),
        )

    def admissible(self) -> list[str]:
        return self.maze.commands(self.state)

    def describe(self) -> str:
        return self.maze.describe(self.state)

    def plan(self) -> tuple[str, ...] | None:
        """The exact oracle: a shortest list of commands that wins; empty once won, None where none does."""
        return () if self.won else self.maze.plan(self.state)

    def render(self) -> str:
        return self.describe()

    def replay(self, commands: Sequence[str]) -> bool:
        """Carry the commands out in the real environment, by primitive actions; whether it ended in success.

        Raises AssertionError where the real grid and the symbolic state differ after a command.
        """
        real = self._real()
        state, reward, ended = self.maze.start, 0.0, False
        for command in commands:
            assert not ended, f"the real environment had ended before {command!r}"
            effect = self.maze.apply(state, command)
            for action in self._primitives(real, state, effect.motion):
                assert not ended, f"the real environment ended in the middle of {command!r}"
                _, reward, ended, _, _ = real.step(action)
            state = effect.state
            assert effect.won == ended == (reward > 0), (
                f"{command!r}: won {effect.won}, but really {ended}, {reward}"
            )
            if not ended:
                shown = Maze.of(real).start
                assert shown.region == state.region, f"{command!r}: in {shown.region}, not {state.region}"
                assert without_letters(shown.items) == without_letters(state.items), (
                    f"{command!r}: {shown.items}, not {state.items}"
                )
            held = f"{real.carrying.color} {real.carrying.type}" if real.carrying else ""
            assert " ".join(state.carrying.split()[:2]) == held, (
                f"{command!r}: carrying {held}, not {state.carrying}"
            )
        return ended

    def _real(self) -> Any:
        real = gym.make(self.env_id, max_steps=10**9).unwrapped
        real.reset(seed=self.layout_seed)
        return real

    def _info(self) -> dict[str, Any]:
        return {"admissible": self.admissible(), "goal": self.goal}

    def _primitives(self, real: Any, state: State, motion: Motion | None) -> Iterator[int]:
        if motion is None:
            return
        walkable = frozenset(self.maze.region(state))
        at = (int(real.agent_pos[0]), int(real.agent_pos[1]))
        for cell in walk(at, motion.stand, walkable):
            yield from _turn(real, cell)
            yield real.actions.forward
        if motion.face:
            yield from _turn(real, motion.face)
        if motion.act:
            yield real.actions[motion.act]


def _turn(real: Any, towards: Cell) -> Iterator[int]:
    direction = NEIGHBOURS.index((towards[0] - int(real.agent_pos[0]), towards[1] - int(real.agent_pos[1])))
    while real.agent_dir != direction:
        yield real.actions.right


class MiniGridWorld:
    """`TextMiniGrid` at play, as the players of `examples/make_demo_data.py` see a world."""

    def __init__(self, env: TextMiniGrid) -> None:
        self.env, self.goal = env, env.goal
        self._needed = len(env.maze.plan(env.maze.start) or ())

    def reset(self) -> str:
        return self.env.reset()[0]

    def step(self, command: str) -> str:
        return self.env.step(command)[0]

    @property
    def admissible(self) -> list[str]:
        return self.env.admissible()

    @property
    def plan(self) -> list[str] | None:
        plan = self.env.plan()
        return None if plan is None else list(plan)

    @property
    def progress(self) -> float:
        return part_done(self.plan, self._needed)

    @property
    def won(self) -> bool:
        return self.env.won

    @property
    def done(self) -> bool:
        return self.env.won


ENV_IDS = (
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-UnlockPickup-v0",
    "MiniGrid-BlockedUnlockPickup-v0",
    "MiniGrid-KeyCorridorS3R2-v0",
    "MiniGrid-KeyCorridorS3R3-v0",
    "MiniGrid-MultiRoom-N4-S5-v1",
    "MiniGrid-ObstructedMaze-1Dl-v0",
    "MiniGrid-ObstructedMaze-1Dlh-v0",
)
LAYOUTS = {"train": range(6), "dev": range(6, 8), "spent": range(8, 12), "test": range(12, 16)}
PLAYERS = roster(expert=2, noisy=12, truncated=2, diverted=2, random=4)


def episodes(split: str) -> Iterator[Played]:
    """Every environment in the layouts of one of `benchmarks.environments.SPLITS`, played by `PLAYERS`."""
    for env_id in ENV_IDS:
        for layout in LAYOUTS[split]:
            world = MiniGridWorld(TextMiniGrid(env_id, layout))
            yield from play_all(world, PLAYERS, prefix="mg", task=f"{env_id}/{layout}", env="minigrid")
