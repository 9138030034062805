"""Crafter in words: recorded episodes of macro-commands in real worlds of the public `crafter` package.

A command is an intention ("collect stone"), carried out by walking the shortest way and fighting off zombies;
an observation says what came of it, what is near and what is carried. A task is one achievement in one world.
Progress follows from the game's own tree of what is made from what: 1 - (commands still needed) / (commands
needed at first).

Hafner 2022, Benchmarking the Spectrum of Agent Capabilities, https://arxiv.org/abs/2109.06780
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from examples.make_demo_data import Played, part_done, play_all, roster

Cell = tuple[int, int]
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COMPASS = {"north": "up", "south": "down", "west": "left", "east": "right"}
STATIONS = ("table", "furnace")
PATIENCE = 120
"""Primitive actions that one command may take."""

COMMANDS = (
    *(f"collect {thing}" for thing in ("wood", "stone", "coal", "iron")),
    *(f"place {station}" for station in STATIONS),
    *(f"make {kind} {tool}" for tool in ("pickaxe", "sword") for kind in ("wood", "stone", "iron")),
    *(f"walk {direction}" for direction in COMPASS),
    "drink water",
    "eat cow",
    "rest",
)


class CrafterTask:
    """One achievement in one world at play, as the players of the demo see a world."""

    def __init__(self, achievement: str, seed: int) -> None:
        self._achievement, self._seed = achievement, seed
        self.goal = f"Survive in the wild and {achievement.replace('_', ' ')}."
        self.reset()
        self._needed = len(self.plan or ())

    def reset(self) -> str:
        self._env = _quiet_world(self._seed)
        self._player, self._world = self._env._player, self._env._world
        return f"You wake up. {self.describe()}"

    def step(self, command: str) -> str:
        verb, _, thing = command.partition(" ")
        before = Counter(self._player.inventory)
        told = getattr(self, f"_{verb}")(thing.replace(" ", "_"))
        if self._player.health <= 0:
            return "You die."
        hurt = " You were hurt." if self._player.health < before["health"] else ""
        return f"{told}{hurt} {self.describe()}"

    @property
    def admissible(self) -> list[str]:
        return list(COMMANDS)

    @property
    def plan(self) -> list[str] | None:
        """The commands that the tree of requirements still asks for, wherever the things may be."""
        if self.won:
            return []
        if self.done:
            return None
        stock = Counter(self._player.inventory)
        for station in STATIONS:
            stock[station] = int(bool(self._cells_of(station)))
        return requirements(self._achievement.partition("_")[2], stock)

    @property
    def progress(self) -> float:
        return part_done(self.plan, self._needed)

    @property
    def won(self) -> bool:
        return bool(self._player.achievements[self._achievement])

    @property
    def done(self) -> bool:
        return self.won or self._player.health <= 0

    def describe(self) -> str:
        materials, objects = self._world.nearby(self._player.pos, 4)
        kinds = {type(thing).__name__.lower() for thing in objects} - {"player"}
        seen = sorted(set(materials) - {"grass", "sand", "path", None}) + sorted(kinds)
        vital = ("health", "food", "drink", "energy")
        held = [
            f"{n} {k.replace('_', ' ')}" for k, n in self._player.inventory.items() if n and k not in vital
        ]
        low = [f"Your {k} is low." for k in vital if self._player.inventory[k] <= 3]
        near = f"Near you: {', '.join(seen) or 'only open ground'}."
        return " ".join([near, f"You carry {', '.join(held) or 'nothing'}.", *low])

    # ------------------------------------------------------------------------ commands

    def _collect(self, thing: str) -> str:
        from crafter import constants

        source, info = next((s, i) for s, i in constants.collect.items() if thing in i["receive"])
        if any(self._player.inventory[tool] < n for tool, n in info["require"].items()):
            return f"You need a {' and a '.join(info['require']).replace('_', ' ')} to collect {thing}."
        had = self._player.inventory[thing]
        if not self._go_beside(lambda: self._cells_of(source)):
            return f"You find no way to any {thing}."
        self._act("do")
        return (
            f"You collect {thing}."
            if self._player.inventory[thing] > had
            else f"You fail to collect {thing}."
        )

    def _place(self, thing: str) -> str:
        from crafter import constants

        uses, where = constants.place[thing]["uses"], constants.place[thing]["where"]
        if lacking := self._lacking(uses):
            return f"You need more {lacking} to place {_a(thing)}."
        if thing == "furnace" and not self._go_near(["table"]):
            return "You find no way to a table to place it by."
        count = len(self._cells_of(thing))
        for move, (dx, dy) in MOVES.items():
            cell = (self._player.pos[0] + dx, self._player.pos[1] + dy)
            material, occupant = self._world[cell]
            if material in where and occupant is None and len(self._cells_of(thing)) == count:
                self._face(move)
                self._act(f"place_{thing}")
        return (
            f"You place {_a(thing)}."
            if len(self._cells_of(thing)) > count
            else f"There is no room for {_a(thing)}."
        )

    def _make(self, thing: str) -> str:
        from crafter import constants

        info, name = constants.make[thing], thing.replace("_", " ")
        if lacking := self._lacking(info["uses"]):
            return f"You need more {lacking} to make {_a(name)}."
        if not self._go_near(info["nearby"]):
            return f"You need a {' and a '.join(info['nearby'])} at hand to make {_a(name)}."
        had = self._player.inventory[thing]
        self._act(f"make_{thing}")
        return (
            f"You make {_a(name)}."
            if self._player.inventory[thing] > had
            else f"You fail to make {_a(name)}."
        )

    def _walk(self, direction: str) -> str:
        start = tuple(self._player.pos)
        for _ in range(8):
            self._act(f"move_{COMPASS[direction]}")
        return (
            f"You walk {direction}." if tuple(self._player.pos) != start else f"You cannot walk {direction}."
        )

    def _drink(self, thing: str) -> str:
        if not self._go_beside(lambda: self._cells_of("water")):
            return "You find no way to any water."
        for _ in range(5):
            self._act("do")
        return "You drink water."

    def _eat(self, thing: str) -> str:
        eaten = self._player.achievements["eat_cow"]
        for _ in range(10):
            if self._player.achievements["eat_cow"] > eaten:
                return "You eat a cow."
            if not self._go_beside(lambda: self._creatures("Cow")):
                return "You find no way to any cow."
            self._act("do")
        return "The cow gets away."

    def _rest(self, thing: str) -> str:
        for _ in range(10):
            self._act("noop")
        return "You rest."

    # ------------------------------------------------------------------------ primitive actions

    def _act(self, action: str) -> None:
        if self._player.health > 0:
            self._env.step(self._env.action_names.index(action))

    def _face(self, move: str) -> None:
        """Turn without moving: the player turns towards whatever it moves to, also where it cannot go."""
        self._player.facing = MOVES[move]

    def _go_beside(self, targets: Callable[[], Iterable[Cell]]) -> bool:
        """Walk until one of the targets is a neighbour, and face it."""

        def arrived(cell: Cell, wanted: set[Cell]) -> bool:
            return any((cell[0] + dx, cell[1] + dy) in wanted for dx, dy in MOVES.values())

        if not self._go(lambda: set(targets()), arrived):
            return False
        wanted, (x, y) = set(targets()), self._player.pos
        facing = next((move for move, (dx, dy) in MOVES.items() if (x + dx, y + dy) in wanted), None)
        if facing:
            self._face(facing)
        return facing is not None

    def _go_near(self, stations: Iterable[str]) -> bool:
        """Walk until every station is within one cell, diagonals included."""
        cells = [set(self._cells_of(station)) for station in stations]
        around = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]

        def arrived(cell: Cell, wanted: set[Cell]) -> bool:
            return all(any((cell[0] + dx, cell[1] + dy) in placed for dx, dy in around) for placed in cells)

        return self._go(set, arrived)

    def _go(self, targets: Callable[[], set[Cell]], arrived: Callable[[Cell, set[Cell]], bool]) -> bool:
        """Shortest way, found anew before every step, as creatures move; fights zombies in reach first."""
        for _ in range(PATIENCE):
            if self._player.health <= 0:
                return False
            x, y = self._player.pos
            attacker = next(
                (m for m, (dx, dy) in MOVES.items() if (x + dx, y + dy) in self._creatures("Zombie")), None
            )
            if attacker:
                self._face(attacker)
                self._act("do")
                continue
            wanted = targets()
            move = self._first_move(lambda cell, wanted=wanted: arrived(cell, wanted))  # type: ignore[misc]
            if not move:
                return move == ""
            self._act(f"move_{move}")
        return False

    def _first_move(self, arrived: Callable[[Cell], bool]) -> str | None:
        """The first move of a shortest way: "" if already there, None if there is none."""
        start = (int(self._player.pos[0]), int(self._player.pos[1]))
        if arrived(start):
            return ""
        queue: deque[tuple[Cell, str]] = deque([(start, "")])
        seen = {start}
        while queue:
            (x, y), first = queue.popleft()
            for move, (dx, dy) in MOVES.items():
                cell = (x + dx, y + dy)
                material, occupant = self._world[cell]
                if cell in seen or occupant is not None or material not in ("grass", "sand", "path"):
                    continue
                if arrived(cell):
                    return first or move
                seen.add(cell)
                queue.append((cell, first or move))
        return None

    def _cells_of(self, material: str) -> list[Cell]:
        cells = (self._world._mat_map == self._world._mat_ids[material]).nonzero()
        return list(zip(*(axis.tolist() for axis in cells), strict=True))

    def _creatures(self, kind: str) -> list[Cell]:
        return [(int(o.pos[0]), int(o.pos[1])) for o in self._world.objects if type(o).__name__ == kind]

    def _lacking(self, uses: dict[str, int]) -> str:
        return next((thing for thing, n in uses.items() if self._player.inventory[thing] < n), "")


def _a(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def requirements(thing: str, stock: Counter[str]) -> list[str]:
    """The commands that obtain one more `thing`, given what is in stock (tables and furnaces standing, too).

    Consumes and fills `stock` along the way, so a tool made once serves for everything after it.
    """
    from crafter import constants

    todo: list[str] = []

    def obtain(thing: str) -> None:
        made, placed = constants.make.get(thing), constants.place.get(thing) if thing in STATIONS else None
        if recipe := made or placed:
            keep = (made or {}).get("nearby", ["table"] if thing == "furnace" else [])
            # getting one thing may use up another, so look again until nothing is missing
            while missing := [s for s in keep if not stock[s]] + [
                u for u, n in recipe["uses"].items() if stock[u] < n
            ]:
                obtain(missing[0])
            stock.subtract(recipe["uses"])
            todo.append(f"{'make' if made else 'place'} {thing.replace('_', ' ')}")
        else:
            source = next(info for info in constants.collect.values() if thing in info["receive"])
            for tool in source["require"]:
                if not stock[tool]:
                    obtain(tool)
            todo.append(f"collect {thing}")
        stock[thing] += 1

    obtain(thing)
    return todo


def _quiet_world(seed: int) -> Any:
    import crafter

    class Quiet(crafter.Env):
        """The same game without pictures, and with creatures in a fixed order, which a set does not have."""

        def _obs(self) -> None:
            return None

        def _balance_chunk(self, chunk: Any, objs: Any) -> None:
            super()._balance_chunk(chunk, sorted(objs, key=lambda thing: tuple(thing.pos)))

    env = Quiet(seed=seed, length=None)
    env.reset()
    return env


ACHIEVEMENTS = (
    "place_table",
    "make_wood_pickaxe",
    "collect_stone",
    "make_stone_pickaxe",
    "collect_coal",
    "place_furnace",
    "collect_iron",
    "make_iron_pickaxe",
)
NEEDS = {
    "make_wood_pickaxe": ("place_table",),
    "collect_stone": ("make_wood_pickaxe",),
    "make_stone_pickaxe": ("collect_stone",),
    "collect_coal": ("make_wood_pickaxe",),
    "place_furnace": ("collect_stone",),
    "collect_iron": ("make_stone_pickaxe",),
    "make_iron_pickaxe": ("collect_coal", "place_furnace", "collect_iron"),
}
"""What each achievement cannot be had without."""
PLAYERS = roster(expert=1, noisy=8, truncated=2, diverted=2, random=2)
WORLDS = {"train": (1, 2, 3), "dev": (4,), "spent": (6, 7, 8), "test": (9, 10, 11, 12, 13)}


def includes(achievement: str, other: str) -> bool:
    """Whether who has one achievement has the other as well.

    >>> includes("make_iron_pickaxe", "collect_stone"), includes("collect_coal", "collect_iron")
    (True, False)
    """
    return other == achievement or any(includes(needed, other) for needed in NEEDS.get(achievement, ()))


def episodes(split: str) -> Iterator[Played]:
    """Every achievement in the worlds of one of `benchmarks.environments.SPLITS`, played by `PLAYERS`."""
    for achievement in ACHIEVEMENTS:
        for seed in WORLDS[split]:
            world = CrafterTask(achievement, seed)
            yield from play_all(world, PLAYERS, prefix="cr", task=f"{achievement}/{seed}", env="crafter")
