"""Play real text games and write the episodes that `valuegraph demo` learns from.

    pip install textworld
    python examples/make_demo_data.py                # rewrites valuegraph/data/textworld_*.jsonl.gz
    python examples/make_demo_data.py --out /some/folder

Games of four families are generated from fixed seeds and compiled on this machine by the `textworld` package
(Côté et al. 2018, https://arxiv.org/abs/1806.11532). Five kinds of player play them: an expert that follows
the game's own winning policy, noisy experts that slip and mostly recover, experts stopped early, experts that
lose interest, and random players. The same package version gives the same bytes, run after run.

Every line is a canonical episode plus one field that the library ignores: `truth`, for those who measure.
It holds `progress` after each step: 1 - (commands left on the way to victory) / (commands needed from the
start), clipped to [0, 1], and 0 once the game cannot be won; `final`, the last of them; and `success`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from valuegraph.episodes import Episode, Step

# -------------------------------------------------------------------------------- worlds


class World(Protocol):
    """What a player may see and do. `plan` is the oracle that experts consult."""

    goal: str

    def reset(self) -> str: ...
    def step(self, command: str) -> str: ...
    @property
    def admissible(self) -> list[str]: ...
    @property
    def plan(self) -> list[str] | None:
        """Commands that win from here: empty once won, None where the game can no longer be won."""

    @property
    def progress(self) -> float:
        """How far this is from the start, 0, to the goal, 1."""

    @property
    def won(self) -> bool: ...
    @property
    def done(self) -> bool: ...


@dataclass(frozen=True)
class Game:
    """One TextWorld game: a challenge of the package, its settings, and the seed it is generated from."""

    family: str
    seed: int
    settings: Mapping[str, Any] = field(hash=False)

    @property
    def task(self) -> str:
        level = self.settings.get("level", self.settings.get("recipe", ""))
        return f"{self.family}/{level}{'-' if level else ''}{self.seed}"

    def compile(self, folder: Path) -> Path:
        """Generate and compile the game into `folder`; the path of the playable file."""
        from textworld.challenges import CHALLENGES
        from textworld.generator import compile_game
        from textworld.generator.game import GameOptions

        options = GameOptions()
        options.seeds = self.seed
        options.path = str(folder / f"{self.task.replace('/', '-')}.z8")
        return Path(compile_game(CHALLENGES[f"tw-{self.family}"][1](dict(self.settings), options), options))


class TextWorldGame:
    """A compiled game at play, as a `World`."""

    def __init__(self, path: Path) -> None:
        import textworld

        asked = textworld.EnvInfos(
            feedback=True, objective=True, admissible_commands=True, policy_commands=True, won=True, lost=True
        )
        self._env = textworld.start(str(path), asked)
        self.reset()
        self.goal: str = _squeeze(self._state.objective)

    def reset(self) -> str:
        self._state = self._env.reset()
        self._needed = len(self._state.policy_commands)
        return clean(self._state.feedback.partition(self._state.objective)[2])

    def step(self, command: str) -> str:
        self._state, _, _ = self._env.step(command)
        return clean(self._state.feedback)

    @property
    def admissible(self) -> list[str]:
        return list(self._state.admissible_commands)

    @property
    def plan(self) -> list[str] | None:
        return list(self._state.policy_commands) or ([] if self.won else None)

    @property
    def progress(self) -> float:
        return part_done(self.plan, self._needed)

    @property
    def won(self) -> bool:
        return bool(self._state.won)

    @property
    def done(self) -> bool:
        return self.won or bool(self._state.lost)

    def close(self) -> None:
        self._env.close()


def clean(feedback: str) -> str:
    """What the game said, on one line; no banner, prompt, score or verdict; "-= Attic =-" is "[Attic]"."""
    # the score and the verdict are the outcome: an observation that shows them would give the answer away
    text = re.sub(r"\*\*\* .*", " ", feedback, flags=re.DOTALL)
    text = re.sub(r"Your score has (just )?gone (up|down) by \w+ points?\.", " ", text)
    text = re.sub(
        r"^>\s*(-= .+? =--?\d+/\d+)?", " ", text, flags=re.MULTILINE
    )  # the prompt and its status line
    return _squeeze(re.sub(r"-= (.+?) =-", r"[\1]", text)) or "Nothing happens."


def part_done(plan: Sequence[str] | None, needed: int) -> float:
    """1 - (commands left) / (commands needed from the start), at least 0; 0 where nothing leads there."""
    return 0.0 if plan is None else max(0.0, 1 - len(plan) / needed)


def _squeeze(text: str) -> str:
    return " ".join(text.split())


# -------------------------------------------------------------------------------- players

Player = Callable[[World, random.Random], Iterator[str]]
"""Yields the next command, reading the world as it then is; stops when it has had enough."""


def expert(world: World, rng: random.Random) -> Iterator[str]:
    while world.plan:
        yield world.plan[0]


def noisy(world: World, rng: random.Random, slip: float) -> Iterator[str]:
    """An expert whose every command is, with probability `slip`, a random one instead."""
    while True:
        lost_the_way = not world.plan or rng.random() < slip
        yield rng.choice(world.admissible) if lost_the_way else world.plan[0]  # type: ignore[index]


def wanderer(world: World, rng: random.Random) -> Iterator[str]:
    while True:
        yield rng.choice(world.admissible)


def truncated(world: World, rng: random.Random) -> Iterator[str]:
    """An expert stopped before the end."""
    yield from islice(expert(world, rng), _part(world, rng))


def diverted(world: World, rng: random.Random) -> Iterator[str]:
    """An expert that turns into a random player on the way."""
    yield from islice(expert(world, rng), _part(world, rng))
    yield from wanderer(world, rng)


def _part(world: World, rng: random.Random) -> int:
    return rng.randint(1, max(1, len(world.plan or ()) - 1))


SLIPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def roster(slips: Sequence[float] = SLIPS, **counts: int) -> list[tuple[str, Player]]:
    """Named players, such as `roster(expert=1, noisy=7)`; noisy ones take their slips in turn."""
    players = {"expert": expert, "random": wanderer, "truncated": truncated, "diverted": diverted}
    return [
        (name, partial(noisy, slip=slips[i % len(slips)]) if name == "noisy" else players[name])
        for name, count in counts.items()
        for i in range(count)
    ]


# -------------------------------------------------------------------------------- episodes

Played = tuple[Episode, dict[str, Any]]
"""An episode and its truth."""


def play(
    world: World, player: Player, rng: random.Random, *, episode_id: str, metadata: Mapping[str, Any]
) -> Played:
    """One episode, and its truth. Cut off after twice the shortest way and eight commands more."""
    world.reset()
    steps, progress = [], []
    for command in islice(player(world, rng), 2 * len(world.plan or ()) + 8):
        steps.append(Step(world.step(command), command))
        progress.append(round(world.progress, 4))
        if world.done:
            break
    won = world.won
    episode = Episode(
        episode_id=episode_id,
        steps=tuple(steps),
        goal=world.goal,
        outcome=float(won),
        terminated=world.done,
        truncated=not world.done,
        metadata=metadata,
    )
    return episode, {"progress": progress, "final": progress[-1], "success": won}


def play_all(
    world: World, players: Sequence[tuple[str, Player]], *, prefix: str, task: str, env: str
) -> Iterator[Played]:
    """One episode for each player. Its chances depend on its own id alone, not on what was played before."""
    for i, (name, player) in enumerate(players):
        episode_id = f"{prefix}-{task.replace('/', '-')}-{i:02d}"
        metadata = {"env": env, "task": task, "policy": name}
        yield play(world, player, random.Random(episode_id), episode_id=episode_id, metadata=metadata)


def record(episode: Episode, truth: Mapping[str, Any]) -> dict[str, Any]:
    return {**episode.to_dict(), "truth": dict(truth)}


def write_records(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """JSON lines, gzip-compressed with no name and no time in the header: equal records, equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as out:
        for line in records:
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


# -------------------------------------------------------------------------------- the demo's data


def cooking(seed: int, recipe: int, *, take: int = 0, go: int = 1, open: bool = False) -> Game:
    settings = {
        "recipe": recipe,
        "take": take,
        "go": go,
        "open": open,
        "cook": True,
        "cut": recipe > 1,
        "drop": False,
    }
    return Game("cooking", seed, {**settings, "recipe_seed": 0, "split": None})


def simple(seed: int, goal: str = "detailed") -> Game:
    return Game("simple", seed, {"rewards": "sparse", "goal": goal, "test": False})


KNOWN_GAMES = (
    *(Game("treasure_hunter", 100 + n, {"level": n}) for n in (4, 6, 9, 12, 13, 15, 17, 23, 26)),
    *(Game("coin_collector", 200 + n, {"level": n}) for n in (4, 6, 8, 10, 104, 107)),
    cooking(301, 1),
    cooking(302, 1, take=1, open=True),
    cooking(303, 2),
    cooking(304, 2, take=1, go=6),
    cooking(305, 3, take=1, open=True),
    *(simple(seed) for seed in (401, 402, 403)),
    simple(404, goal="brief"),
)
NEW_GAMES = (
    Game("treasure_hunter", 150, {"level": 7}),
    Game("treasure_hunter", 151, {"level": 16}),
    Game("coin_collector", 250, {"level": 7}),
    Game("coin_collector", 251, {"level": 105}),
    cooking(350, 2, take=1),
    simple(450),
)
FILES = ("textworld_train.jsonl.gz", "textworld_heldout.jsonl.gz")
TRAINING = roster(expert=1, noisy=8, truncated=2, diverted=2, random=3)
HELD_OUT_KNOWN = roster(noisy=4, truncated=2, diverted=1, random=1)
HELD_OUT_NEW = roster(expert=1, noisy=7, truncated=3, diverted=3, random=2)


def tables(games: Iterable[Game]) -> Iterator[tuple[Game, TextWorldGame]]:
    """Compile each game and yield it ready to play; it is closed when the next one is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        for game in games:
            with closing(TextWorldGame(game.compile(Path(folder)))) as world:
                yield game, world


def make(known: Iterable[Game], new: Iterable[Game]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records to learn from (known games), and held-out ones (other plays of those, and the new games)."""
    training: list[Played] = []
    held_out: list[Played] = []
    for game, world in tables(known):
        training += play_all(world, TRAINING, prefix="train", task=game.task, env="textworld")
        held_out += play_all(world, HELD_OUT_KNOWN, prefix="known", task=game.task, env="textworld")
    for game, world in tables(new):
        held_out += play_all(world, HELD_OUT_NEW, prefix="new", task=game.task, env="textworld")
    return [record(*played) for played in training], [record(*played) for played in held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "valuegraph" / "data")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, records in zip(FILES, make(KNOWN_GAMES, NEW_GAMES), strict=True):
        write_records(records, out / name)
        won, steps = sum(r["truth"]["success"] for r in records), sum(len(r["steps"]) for r in records)
        size = (out / name).stat().st_size
        print(f"{name}: {len(records)} episodes, {won} won, {steps} steps, {size:,} bytes")


if __name__ == "__main__":
    main()
