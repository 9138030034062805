"""TextWorld games played live by a policy, and by the players of the demo."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from examples.make_demo_data import Game, Player, TextWorldGame, cooking, play, roster
from valuegraph import Episode, Step

GAMES = (
    Game("treasure_hunter", 106, {"level": 6}),
    Game("coin_collector", 204, {"level": 4}),
    Game("coin_collector", 206, {"level": 6}),
    cooking(302, 1, take=1, open=True),
)
CLAIMS = ("yes", "Yes. The task is complete: {goal}", "I have achieved: {goal}", "{goal}")
PLAYERS = roster(expert=2, noisy=20, truncated=3, diverted=3, random=8)
CLONED = roster(slips=(0.3, 0.4, 0.5, 0.6), noisy=24)
_INPUT = 190  # characters that a game reads of a command

At = tuple[str, ...]
"""Where a rollout stands: the commands that brought it there."""


class Live:
    """A game played live. What is known to follow from the same commands is not played again.

    Claims change nothing in the game (the parser rejects them without taking a turn), so they are no part of
    where a rollout stands.
    """

    def __init__(self, game: Game, world: TextWorldGame) -> None:
        world.reset()
        self.task, self.goal = game.task, world.goal
        self.horizon = len(world.plan or ()) + 6
        self.claims = tuple(claim.format(goal=world.goal) for claim in CLAIMS)
        self._world = world
        self._at: At | None = ()
        self._seen: dict[At, tuple[str, tuple[str, ...], bool, bool]] = {}
        self._answers: dict[str, str] = {}
        self._note((), "")

    def commands(self, at: At) -> tuple[str, ...]:
        """What can be done there: the game's commands, then the claims."""
        return (*self._seen[at][1], *self.claims)

    def step(self, at: At, action: str) -> tuple[At, str]:
        """Where the action leads, and what the game says."""
        if action in self.claims:
            if action not in self._answers:
                self._go(at)
                self._answers[action] = self._world.step(action[:_INPUT])
            return at, self._answers[action]
        new = (*at, action)
        if new not in self._seen:
            self._go(new)
        return new, self._seen[new][0]

    def done(self, at: At) -> bool:
        return self._seen[at][2]

    def won(self, at: At) -> bool:
        return self._seen[at][3]

    def played_by(self, player: Player, key: str, **about: str) -> Episode:
        """An episode of somebody else; `key` names it and seeds it."""
        self._at = None  # the game will be elsewhere
        rng, about = random.Random(key), {"task": self.task, **about}
        return play(self._world, player, rng, episode_id=key, metadata=about)[0]

    def _go(self, at: At) -> None:
        if self._at is None or at[: len(self._at)] != self._at:
            self._world.reset()
            self._at = ()
        for command in at[len(self._at) :]:
            said = self._world.step(command)
            self._at = (*self._at, command)
            if self._at not in self._seen:
                self._note(self._at, said)

    def _note(self, at: At, said: str) -> None:
        world = self._world
        commands = () if world.done else tuple(sorted(world.admissible))
        self._seen[at] = (said, commands, world.done, world.won)


@dataclass
class Run:
    """One rollout as it is played, with what could have been done at each step."""

    live: Live
    at: At = ()
    steps: list[Step] = field(default_factory=list)
    options: list[tuple[str, ...]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.live.done(self.at) or len(self.steps) >= self.live.horizon

    @property
    def won(self) -> bool:
        return self.live.won(self.at)

    @property
    def claims(self) -> int:
        return sum(step.action in self.live.claims for step in self.steps)

    def act(self, options: tuple[str, ...], chosen: int) -> None:
        self.options.append(options)
        self.chosen.append(chosen)
        self.at, said = self.live.step(self.at, options[chosen])
        self.steps.append(Step(said, options[chosen]))

    def episode(self, name: str) -> Episode:
        """Without its outcome, which no reward may see."""
        ended = self.live.done(self.at)
        return Episode(
            name,
            tuple(self.steps),
            goal=self.live.goal,
            terminated=ended,
            truncated=not ended,
            metadata={"task": self.live.task},
        )


def opened(games: Sequence[Game], stack: ExitStack) -> Iterator[Live]:
    """The games, compiled; they are closed with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    for game in games:
        yield Live(game, stack.enter_context(closing(TextWorldGame(game.compile(folder)))))


def honest_episodes(games: Sequence[Live], name: str) -> list[Episode]:
    """Every game, played by everybody: what the rewards are fitted on, or what a monitor compares with."""
    return [
        live.played_by(player, f"{name}-{live.task}-{i}", policy=policy)
        for live in games
        for i, (policy, player) in enumerate(PLAYERS)
    ]


def noisy_runs(games: Sequence[Live], seed: int) -> list[Run]:
    """Noisy players, with the commands that they could have chosen: what the policy is cloned from."""
    runs = []
    for live in games:
        for i, (_, player) in enumerate(CLONED):
            run = Run(live)
            for step in live.played_by(player, f"{seed}/{live.task}/{i}").steps:
                if not run.over:
                    options = live.commands(run.at)
                    run.act(options, options.index(str(step.action)))
            runs.append(run)
    return runs
