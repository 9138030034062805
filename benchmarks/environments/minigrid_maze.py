"""The symbolic model of one MiniGrid layout: its states, what a command does, the exact shortest way to win.

Pure values and functions; `minigrid_text.py` checks them against the real environment. Where the agent is
within its region is no part of a state, and where a thing is put down depends on the state alone, so equal
states have equal futures and breadth-first search over them is exact.
"""

from __future__ import annotations

import string
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

Cell = tuple[int, int]
NEIGHBOURS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""In the order of MiniGrid's directions: right, down, left, up."""


class Item(NamedTuple):
    """A thing in the maze. Doors are "locked", "closed" or "open"; other things have no state."""

    name: str
    cell: Cell
    state: str = ""

    @property
    def kind(self) -> str:
        return next(word for word in self.name.split() if word in ("door", "key", "ball", "box"))

    @property
    def colour(self) -> str:
        return self.name.split()[0]


class State(NamedTuple):
    """Everything that matters for what can still be done. Where in its region the agent stands does not."""

    region: Cell
    """The first cell of the region that the agent can walk in."""
    carrying: str
    """A name, or ""."""
    items: tuple[Item, ...]
    on_goal: bool = False


class Motion(NamedTuple):
    """How a command is carried out: walk to a cell, turn to a neighbour, then perhaps a primitive action."""

    stand: Cell
    face: Cell | None = None
    act: str = ""


class Effect(NamedTuple):
    """What a command does."""

    state: State
    message: str
    won: bool = False
    motion: Motion | None = None


@dataclass(frozen=True, eq=False)
class Maze:
    """The symbolic model of one layout. States are values; nothing here changes."""

    start: State
    floor: frozenset[Cell]
    """Cells that are not wall, lava or goal."""
    goal_cell: Cell | None
    target: str
    """The thing to pick up, or ""."""
    inside: dict[str, str]
    """What each box holds."""
    mission: str
    _plans: dict[State, tuple[str, ...] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, env: Any) -> Maze:
        """Read the layout of a freshly reset MiniGrid environment."""
        cells = [(x, y) for x in range(env.grid.width) for y in range(env.grid.height)]
        placed = [(cell, thing) for cell in cells if (thing := env.grid.get(*cell)) is not None]
        walls = {cell for cell, thing in placed if thing.type in ("wall", "lava")}
        goals = [cell for cell, thing in placed if thing.type == "goal"]
        things = [(cell, thing) for cell, thing in placed if thing.type in ("door", "key", "ball", "box")]
        hidden = [thing.contains for _, thing in things if thing.type == "box" and thing.contains]
        name = _Names(thing for thing in [*(thing for _, thing in things), *hidden])
        items, inside, target = [], {}, ""
        for cell, thing in things:
            item = Item(name(thing), cell, _door_state(thing))
            items.append(item)
            if thing.type == "box" and thing.contains:
                inside[item.name] = name(thing.contains)
            if thing is getattr(env, "obj", None):
                target = item.name
        floor = frozenset(cells) - walls - set(goals)
        agent = (int(env.agent_pos[0]), int(env.agent_pos[1]))
        blocked = frozenset(item.cell for item in items if item.state != "open")
        start = State(_flood(agent, floor - blocked)[0], "", tuple(sorted(items)))
        mission = f"pick up the {target}" if target else str(env.mission)
        return cls(start, floor, goals[0] if goals else None, target, inside, mission)

    def region(self, state: State) -> tuple[Cell, ...]:
        """The cells that the agent can walk to, first to last."""
        return _flood(state.region, self.floor - {item.cell for item in state.items if item.state != "open"})

    def visible(self, state: State) -> list[Item]:
        """The things in the region or beside it."""
        region = frozenset(self.region(state))
        return [item for item in state.items if item.cell in region or _beside(item.cell, region)]

    def goal_in_reach(self, state: State) -> bool:
        return (
            self.goal_cell is not None and _beside(self.goal_cell, frozenset(self.region(state))) is not None
        )

    def describe(self, state: State) -> str:
        seen = [_a(f"{item.state} {item.name}".strip()) for item in self.visible(state)]
        seen += ["the green goal square"] * self.goal_in_reach(state)
        held = f"the {state.carrying}" if state.carrying else "nothing"
        return f"You see {', '.join(seen) or 'nothing'}. You are carrying {held}."

    def commands(self, state: State) -> list[str]:
        """What may be tried here; not all of it works (a door may be locked, hands may be full)."""
        if state.on_goal:
            return ["look around"]
        offered = ["look around"]
        for item in self.visible(state):
            offered.append(f"go to the {item.name}")
            if item.kind != "door":
                offered.append(f"pick up the {item.name}")
            if item.kind == "box" or (item.kind == "door" and item.state != "open"):
                offered.append(f"open the {item.name}")
        if state.carrying:
            offered.append(f"drop the {state.carrying}")
        if self.goal_in_reach(state):
            offered.append("go to the green goal square")
        return offered

    def vocabulary(self) -> list[str]:
        """Every command that any state of this maze may offer."""
        said = ["look around", "go to the green goal square"]
        for name in sorted({*(item.name for item in self.start.items), *self.inside.values()}):
            said += [f"{verb} the {name}" for verb in ("go to", "open", "pick up", "drop")]
        return said

    def apply(self, state: State, command: str) -> Effect:
        """What `command` does in `state`; an impossible one changes nothing and says why."""
        if command not in self.commands(state):
            return Effect(state, "You cannot do that here.")
        if command == "look around":
            return Effect(state, "You look around.")
        region = frozenset(self.region(state))
        if command == "go to the green goal square":
            assert self.goal_cell is not None
            stand = _beside(self.goal_cell, region)
            assert stand is not None
            return Effect(
                state._replace(on_goal=True),
                "You step onto the goal square.",
                True,
                Motion(stand, self.goal_cell, "forward"),
            )
        verb, _, name = command.partition(" the ")
        if verb == "drop":
            return self._drop(state)
        item = next(item for item in state.items if item.name == name)
        stand = _beside(item.cell, region)
        assert stand is not None
        others = tuple(other for other in state.items if other != item)
        if verb == "go to":
            return Effect(state, f"You walk to the {name}.", motion=Motion(stand, item.cell))
        if verb == "pick up":
            if state.carrying:
                return Effect(state, "Your hands are full.")
            after = self._settle(stand, name, others)
            return Effect(
                after, f"You pick up the {name}.", name == self.target, Motion(stand, item.cell, "pickup")
            )
        if item.kind == "box":
            found = self.inside.get(name)
            after = self._settle(
                stand, state.carrying, (*others, *([Item(found, item.cell)] if found else []))
            )
            told = f"Inside is {_a(found)}." if found else "It is empty."
            return Effect(after, f"You open the {name}. {told}", motion=Motion(stand, item.cell, "toggle"))
        if item.state == "locked" and state.carrying.split()[:2] != [item.colour, "key"]:
            return Effect(state, f"The {name} is locked.")
        after = self._settle(stand, state.carrying, (*others, item._replace(state="open")))
        how = "unlock and open" if item.state == "locked" else "open"
        won = not self.target and self.goal_cell is None
        return Effect(after, f"You {how} the {name}.", won, Motion(stand, item.cell, "toggle"))

    def plan(self, state: State) -> tuple[str, ...] | None:
        """A shortest list of commands that wins from `state`; empty if it has won, None where none does."""
        if state.on_goal or (self.target and state.carrying == self.target):
            return ()
        if state not in self._plans:
            path = self._search(state)
            # every state on a shortest way is itself a shortest way from the end
            for i, (seen, _) in enumerate(path or [(state, "")]):
                self._plans[seen] = tuple(command for _, command in path[i:]) if path else None
        return self._plans[state]

    def _search(self, start: State) -> list[tuple[State, str]]:
        came_from: dict[State, tuple[State, str] | None] = {start: None}
        queue = deque([start])
        while queue:
            state = queue.popleft()
            for command in self.commands(state):
                effect = self.apply(state, command)
                if effect.won:
                    path, link = [(state, command)], came_from[state]
                    while link is not None:
                        path.append(link)
                        link = came_from[link[0]]
                    return path[::-1]
                if effect.state not in came_from:
                    came_from[effect.state] = (state, command)
                    queue.append(effect.state)
        return []

    def _drop(self, state: State) -> Effect:
        """Put down what is carried on the first cell that hides nothing and parts no region, or nearly so."""
        region = self.region(state)
        occupied = {item.cell for item in state.items}
        best: tuple[int, Effect] | None = None
        for cell in region:
            stand = _beside(cell, frozenset(region))
            if cell in occupied or stand is None:
                continue
            after = self._settle(stand, "", (*state.items, Item(state.carrying, cell)))
            effect = Effect(after, f"You drop the {state.carrying}.", motion=Motion(stand, cell, "drop"))
            kept = len(self.visible(after)) + self.goal_in_reach(after)
            whole = len(self.region(after)) == len(region) - 1
            if whole and kept == len(self.visible(state)) + self.goal_in_reach(state) + 1:
                return effect
            if best is None or kept > best[0]:
                best = kept, effect
        return best[1] if best else Effect(state, "There is no room to drop that.")

    def _settle(self, agent: Cell, carrying: str, items: Iterable[Item]) -> State:
        items = tuple(sorted(items))
        free = self.floor - {item.cell for item in items if item.state != "open"}
        return State(_flood(agent, free)[0], carrying, items)


@lru_cache(maxsize=100_000)
def _flood(start: Cell, free: frozenset[Cell]) -> tuple[Cell, ...]:
    seen, stack = {start}, [start]
    while stack:
        x, y = stack.pop()
        for dx, dy in NEIGHBOURS:
            cell = (x + dx, y + dy)
            if cell in free and cell not in seen:
                seen.add(cell)
                stack.append(cell)
    return tuple(sorted(seen))


def _beside(cell: Cell, region: frozenset[Cell]) -> Cell | None:
    """The first neighbour of `cell` that lies in `region`."""
    x, y = cell
    return next((near for dx, dy in NEIGHBOURS if (near := (x + dx, y + dy)) in region), None)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _door_state(thing: Any) -> str:
    return (
        "" if thing.type != "door" else "locked" if thing.is_locked else "open" if thing.is_open else "closed"
    )


class _Names:
    """Names for things: colour and kind, with a letter where several are alike."""

    def __init__(self, things: Iterable[Any]) -> None:
        self._total = Counter((thing.color, thing.type) for thing in things)
        self._used: Counter[tuple[str, str]] = Counter()

    def __call__(self, thing: Any) -> str:
        alike = (thing.color, thing.type)
        letter = string.ascii_uppercase[self._used[alike]]
        self._used[alike] += 1
        return f"{thing.color} {thing.type}" + (f" {letter}" if self._total[alike] > 1 else "")


def without_letters(items: Iterable[Item]) -> list[tuple[str, Cell, str]]:
    """Without the letters, which depend on what else is in the grid."""
    return sorted((" ".join(item.name.split()[:2]), item.cell, item.state) for item in items)


def walk(start: Cell, end: Cell, walkable: frozenset[Cell]) -> list[Cell]:
    """A shortest way, without its first cell."""
    came_from: dict[Cell, Cell] = {start: start}
    queue = deque([start])
    while queue and end not in came_from:
        x, y = queue.popleft()
        for dx, dy in NEIGHBOURS:
            cell = (x + dx, y + dy)
            if cell in walkable and cell not in came_from:
                came_from[cell] = (x, y)
                queue.append(cell)
    way, cell = [], end
    while cell != start:
        way.append(cell)
        cell = came_from[cell]
    return way[::-1]
