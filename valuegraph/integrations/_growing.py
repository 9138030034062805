"""Rewards of episodes while they grow, whatever host plays them.

`GrowingEpisodes` holds one row per environment. A host says when an episode begins and what each step did; it
gets back rewards, and finished episodes go into the memory that the next rewards come from.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from valuegraph.episodes import Episode, Observation, Step

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["MODES", "Describe", "Goal", "GrowingEpisodes", "Move", "Outcome", "as_it_is", "succeeded"]

Info = Mapping[str, Any]
Described = tuple[str | Sequence[float] | np.ndarray, str | None]
Describe = Callable[[Any, Any, Info], Described]
"""(observation, action, info) -> (text or vector, action in words); the action of a reset is None."""
Goal = str | None | Callable[[Info], str | None]
"""A goal, or how to read it from the info of a reset."""
Outcome = Callable[[Info, float, bool], float | None]
"""(last info, return of the environment's own rewards, terminated) -> outcome in [0, 1], None if unknown."""

MODES = ("replace", "add", "shaping")
_REMEMBERED = 100_000


def as_it_is(observation: Any, action: Any, info: Info) -> Described:
    """The observation itself: text, or numbers laid flat; the action by its name."""
    words = None if action is None else str(action)
    return (observation if isinstance(observation, str) else np.ravel(observation)), words


def succeeded(info: Info, ret: float, terminated: bool) -> float:
    """1 for a success: "success" or "is_success" in `info`; else a terminal state and a return above 0."""
    for name in ("success", "is_success"):
        if name in info:
            return float(bool(info[name]))
    return float(terminated and ret > 0.0)


class Move(NamedTuple):
    """What one step of one environment did."""

    row: int
    """Which environment."""
    observation: Any
    """What followed the action: at the end of an episode the true last observation, not that of a reset."""
    action: Any
    reward: float
    """The environment's own."""
    terminated: bool
    truncated: bool
    info: Info


@dataclass(slots=True)
class _Growing:
    """An episode that is not over yet."""

    goal: str | None
    steps: list[Step]
    value: float = 0.0
    """U_t or Psi(s_t), scaled, as it was when the state was reached."""
    novelty: float = 0.0
    ret: float = 0.0


@dataclass(slots=True)
class _Memo:
    """Values of states, valid for one version of the memory."""

    version: int = -1
    values: dict[tuple[Observation, str | None], float] = field(default_factory=dict)


class GrowingEpisodes:
    """Rewards of `rows` environments side by side.

    mode "replace": scale * (U_t - U_(t-1)), which sums to scale * (U_T - U_0), U_0 being what the reset alone
    is worth. "add": the same on top of the environment's reward. "shaping": the environment's reward plus
    F_t = gamma * Psi(s_(t+1)) - Psi(s_t) with Psi = scale * `rm.potential`, zero after a terminal state and
    kept on truncation (Ng, Harada & Russell 1999).

    The novelty bonus b joins in as a potential b * N(s) with N = `rm.novelty`, in every mode. So it costs to
    leave what is new, what was tried looks worse than what was not, and the optimal policy stays; a bonus
    added to the reward would make what was tried once look better than what never was. Potentials are those
    of the memory when a state was reached: a memory may grow meanwhile (Devlin & Kudenko 2012).

    Raises `ValueError` for an unknown mode and numbers out of range.
    """

    def __init__(
        self,
        rm: RewardModel,
        rows: int,
        *,
        describe: Describe = as_it_is,
        goal: Goal = None,
        mode: str = "shaping",
        scale: float = 1.0,
        gamma: float = 0.99,
        novelty_bonus: float = 0.0,
        update_every: int = 0,
        outcome: Outcome = succeeded,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}, expected one of {MODES}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma}, must be in [0, 1]")
        if not (np.isfinite(scale) and 0.0 <= novelty_bonus < np.inf):
            raise ValueError(
                f"scale={scale} must be finite and novelty_bonus={novelty_bonus} finite and at least 0"
            )
        if update_every < 0:
            raise ValueError(f"update_every={update_every}, must be at least 0")
        if mode == "shaping" and rm.config.evidence != "observation" and rm.encoder.id[:6] != "array/":
            warnings.warn(
                f"the memory holds steps by evidence {rm.config.evidence!r}, but the potential of a state is "
                "read by its observation alone; use FitConfig(evidence='observation')",
                stacklevel=3,
            )
        self.rm, self.mode, self.scale, self.gamma = rm, mode, scale, gamma
        self.novelty_bonus, self.update_every = novelty_bonus, update_every
        self._describe, self._goal, self._outcome = describe, goal, outcome
        self._growing: list[_Growing | None] = [None] * rows
        self._finished: list[Episode] = []
        self._psi, self._new = _Memo(), _Memo()
        # Ids must not collide with those of earlier runs in the same memory; they enter no score.
        self._run, self._count = uuid.uuid4().hex[:12], 0

    def begin(self, starts: Iterable[tuple[int, Any, Info]]) -> None:
        """Episodes begin: (row, observation, info) of each reset. What was not finished is forgotten."""
        rows = []
        for row, observation, info in starts:
            goal = self._goal(info) if callable(self._goal) else self._goal
            self._growing[row] = _Growing(goal, [self._step(observation, None, info, None)])
            rows.append(row)
        for row, value, novelty in zip(rows, *self._values(rows), strict=True):
            episode = self._of(row)
            episode.value, episode.novelty = value, novelty

    def step(self, moves: Sequence[Move]) -> list[tuple[float, float]]:
        """Reward, and U_t or Psi(s_t) times the scale, of each move. Episodes that end are kept for `flush`,
        which follows when it is due.
        """
        for move in moves:
            episode = self._of(move.row)
            episode.steps.append(self._step(move.observation, move.action, move.info, move.reward))
            episode.ret += move.reward
        ending = {move.row: move.terminated for move in moves if move.terminated or move.truncated}
        values, novelties = self._values([move.row for move in moves], ending)
        rewards = [self._reward(*each) for each in zip(moves, values, novelties, strict=True)]
        for move in moves:
            if move.terminated or move.truncated:
                self._finish(move)
        if self.update_every and len(self._finished) >= self.update_every:
            self.flush()
        return list(zip(rewards, values, strict=True))

    def flush(self) -> None:
        """Hand finished episodes to the memory now."""
        if self._finished:
            self.rm.update(self._finished)
            self._finished = []

    def _reward(self, move: Move, value: float, novelty: float) -> float:
        episode = self._of(move.row)
        goes_on = 0.0 if move.terminated else self.gamma
        if self.mode == "shaping":
            reward = goes_on * value - episode.value
        else:
            reward = value - episode.value
        if self.mode != "replace":
            reward += move.reward
        if self.novelty_bonus:
            reward += self.novelty_bonus * (goes_on * novelty - episode.novelty)
        episode.value, episode.novelty = value, novelty
        return reward

    def _finish(self, move: Move) -> None:
        episode = self._of(move.row)
        self._growing[move.row] = None
        if not self.update_every:
            return
        self._count += 1
        self._finished.append(
            Episode(
                f"{self._run}-{self._count}",
                tuple(episode.steps),
                episode.goal,
                self._outcome(move.info, episode.ret, move.terminated),
                terminated=move.terminated,
                truncated=move.truncated,
            )
        )

    def _step(self, observation: Any, action: Any, info: Info, reward: float | None) -> Step:
        said, words = self._describe(observation, action, info)
        return Step(said if isinstance(said, str) else tuple(map(float, said)), words, reward)

    def _of(self, row: int) -> _Growing:
        episode = self._growing[row]
        if episode is None:
            raise RuntimeError("step was called before reset, or after the episode had ended")
        return episode

    def _values(
        self, rows: Sequence[int], ending: Mapping[int, bool] = MappingProxyType({})
    ) -> tuple[list[float], list[float]]:
        """Value and novelty of the state that each row is in; `ending` says whether those that are over were
        terminated, rather than truncated.
        """
        episodes = [self._of(row) for row in rows]
        if self.mode == "shaping":
            values = self._remembered(self._psi, self.rm.potential, episodes)
        else:
            values = [0.0] * len(rows)
            for over in (False, True):
                these = [i for i, row in enumerate(rows) if (row in ending) == over]
                # A step is worth what it adds, so the prefix is scored: nothing that comes later can matter.
                prefixes = [
                    Episode(
                        f"{i}",
                        tuple(episodes[i].steps),
                        episodes[i].goal,
                        terminated=ending.get(rows[i], False),
                    )
                    for i in these
                ]
                totals = self.rm.score(prefixes, ongoing=not over).total if prefixes else ()
                for i, total in zip(these, totals, strict=True):
                    values[i] = float(total)
        novelties = [0.0] * len(rows)
        if self.novelty_bonus:
            novelties = self._remembered(self._new, self.rm.novelty, episodes)
        return [self.scale * value for value in values], novelties

    def _remembered(
        self, memo: _Memo, read: Callable[..., np.ndarray], episodes: Sequence[_Growing]
    ) -> list[float]:
        """`read` at the last state of each episode, once per state and version of the memory."""
        version = self.rm.graph.episodes
        if memo.version != version or len(memo.values) > _REMEMBERED:
            memo.version, memo.values = version, {}
        keys = [(episode.steps[-1].observation, episode.goal) for episode in episodes]
        unknown: dict[str | None, list[Observation]] = {}
        for observation, goal in dict.fromkeys(keys):
            if (observation, goal) not in memo.values:
                unknown.setdefault(goal, []).append(observation)
        for goal, observations in unknown.items():
            for observation, value in zip(observations, read(observations, goal).tolist(), strict=True):
                memo.values[observation, goal] = value
        return [memo.values[key] for key in keys]
