"""From memory and rollouts to scores: how well it ended, how it got there, and the utility of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from valuegraph.accounts import Told, closed, underway
from valuegraph.calibration import SATURATION, Calibration
from valuegraph.context import Encoded, first_saying, learner_inputs
from valuegraph.graph import Floats, Neighbours, ValueGraph
from valuegraph.networks import InstrumentalNet, Learned, read_steps
from valuegraph.scores import RolloutScore
from valuegraph.threads import one_thread, side_by_side
from valuegraph.transitions import transitions
from valuegraph.utility import FULL, KNOWN, alive, carried, confidence, gathered, ramp
from valuegraph.ways import Followed, Way, Ways, arrived, follow

__all__ = ["Scorer"]

Array = NDArray[np.float64]

_RESTATED = 0.9  # cosine of step and goal above which a step says no more than that, whatever is remembered
_BAD_END, _GOOD_END = 0.2, 0.4  # u of the last step of an ended rollout, from a lost one to a won one
_UNDONE, _DONE = 0.9, 1.0  # g from which on that does not matter: all that a success does was done
_LEAST = 0.1  # value of the best end of a goal, at least
_EXPERIENCED = 100  # episodes from which on what was learned from them says enough of a new goal
_VAGUE, _SURE = 0.6, 0.9  # how sure the memory must be of a rollout before its word on the end counts
_SMALL = 50_000  # nodes up to which searching is work in small pieces
_TOGETHER = 16  # rollouts that a thread is worth waking for


class _Reading(NamedTuple):
    """What the memory says of each step, (T,) each, in [0, 1]."""

    value: Array
    """Kernel read of h at (z, phi, goal)."""
    support: Array
    covered: Array
    """Support at (phi, goal), whatever came before."""
    dead_end: Array
    """How surely episodes end badly here."""
    good_end: Array
    """One but for the say of the memory that no success ended here."""
    ending: Array
    """Share of what happened here that was a good end; 0 where landmarks are known by their words."""


class Evidence(NamedTuple):
    """What may be said of each step, (T,) each, before the memory is asked for values."""

    counted: NDArray[np.bool_]
    """Whether it is evidence."""
    similarity: Array
    """Cosine to the nearest remembered step."""
    first: NDArray[np.int64]
    """The number, in its rollout, of the first step that says the same."""


@dataclass(eq=False)
class Scorer:
    """The one way to get a score. Reads a graph that nobody writes meanwhile; `refresh` after a write."""

    graph: ValueGraph
    net: InstrumentalNet | None
    calibration: Calibration

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Forget what was derived from an earlier state of the graph."""
        self.ways = Ways(self.graph)

    def evidence(self, encoded: Encoded) -> Evidence:
        """Which steps count, and by what.

        A step counts if it says something new in its rollout, is near something remembered, and is nearer to
        that than to the words of the goal. One that does not count is read but never raises the score.
        """
        goals = encoded.goals[encoded.episode_of]
        similarity = self.graph.step_similarity(encoded.steps, goals)
        echo = np.sum(encoded.steps * goals, axis=1) > np.minimum(
            similarity - self.calibration.echo, _RESTATED
        )
        alien = similarity < self.calibration.support_floor
        first = first_saying(encoded)
        return Evidence(~((first < encoded.places) | alien | echo), similarity, first)

    def score(self, encoded: Encoded) -> list[RolloutScore]:
        """Score each rollout by itself, so that it does not matter which others are in the batch.

        A large memory is asked for all of them at once; then a score may differ by some 1e-5.
        """
        rollouts = len(encoded.goals)
        if len(self.graph) <= _SMALL:
            with one_thread():
                return [self.score_one(encoded, b) for b in range(rollouts)]
        parts = min(torch.get_num_threads(), -(-rollouts // _TOGETHER))
        bounds = np.linspace(0, rollouts, parts + 1).astype(int).tolist()
        scored = side_by_side(self._score_together, [encoded.select(i, j) for i, j in pairwise(bounds)])
        return [score for part in scored for score in part]

    def _score_together(self, encoded: Encoded) -> list[RolloutScore]:
        evidence = self.evidence(encoded)
        learned = self._learned(encoded, evidence.counted)
        reading, near = self._read(learned, encoded.steps, encoded.goals[encoded.episode_of])
        return [
            self._score(
                encoded.select(b),
                _Reading(*(column[rows] for column in reading)),
                Neighbours(near.nodes[rows], near.kernel[rows]),
                None if learned is None else Learned(*(column[rows] for column in learned)),
                Evidence(evidence.counted[rows], evidence.similarity[rows], evidence.first[rows]),
            )
            for b in range(len(encoded.goals))
            for rows in [encoded.rows(b)]
        ]

    def score_one(self, encoded: Encoded, b: int) -> RolloutScore:
        """Score rollout b."""
        one = encoded.select(b)
        evidence = self.evidence(one)
        learned = self._learned(one, evidence.counted)
        read, near = self._read(learned, one.steps, np.broadcast_to(one.goals[0], one.steps.shape))
        return self._score(one, read, near, learned, evidence)

    def _learned(self, encoded: Encoded, counted: NDArray[np.bool_]) -> Learned | None:
        """What the learner says of each step; None without one."""
        if self.net is None:
            return None
        return read_steps(self.net, learner_inputs(encoded, counted), counted, encoded.starts)

    def _score(
        self,
        one: Encoded,
        read: _Reading,
        near: Neighbours,
        learned: Learned | None,
        evidence: Evidence,
    ) -> RolloutScore:
        steps, goal = one.steps, one.goals[0]
        counted, similarity, first = evidence
        ways, likeness = self.ways.towards(goal)
        known = np.full(len(steps), confidence(likeness.max(initial=0.0)))
        covered = known * np.sqrt(np.cumsum(read.covered * counted) / np.maximum(np.cumsum(counted), 1))
        aligned = self._follow(steps, ways, likeness, evidence)
        moved = transitions(self.graph.edges, near, counted, aligned.begun)
        counted = counted | (aligned.again > 0)
        said = self._remembered(read.value, aligned.again, ways, likeness)
        remembered, held = carried(said, read.support, counted)
        value = None if learned is None else learned.value
        told = Told(
            value=value,
            gains=None if learned is None else gathered(learned.gain, counted, first),
            remembered=remembered,
            held=held,
            strict=aligned.strict,
            loose=aligned.loose,
            alive=alive(read.dead_end, value),
            hint=self._hint(one, counted),
        )
        # On the way, the goal alone says how far the memory is to be trusted. With the last step that counts
        # the account is closed: the memory must cover what was done, and as well as a success is in full.
        running = underway(told, known, self.calibration.memory_share, counted, first)
        full = covered * self.calibration.saturation + (1.0 - covered) * SATURATION
        there = known * arrived(aligned, moved, read.ending, read.good_end)
        closing, terminal, instrumental = closed(
            told, covered, counted, running, full, there, self.calibration.steady
        )
        last = int(np.flatnonzero(counted)[-1]) if counted.any() else 0
        sure = float(covered[-1])
        if any(one.ended):
            done = ramp(instrumental[last], _UNDONE, _DONE)
            closing[-1] *= 1.0 - (1.0 - done) * ramp(sure, _VAGUE, _SURE) * _bad_end(read, terminal, last)
        support = ramp(similarity, 0.5, 0.9)
        return RolloutScore(
            np.concatenate([running[:last], closing[last:]]),
            running,
            closing,
            terminal,
            instrumental,
            support,
            counted,
            sure,
            aligned.way,
            float(there[last]),
        )

    def _remembered(
        self, value: Array, again: NDArray[np.int64], ways: Sequence[Way], likeness: Array
    ) -> Array:
        """(T,) values as they are meant: an end that is passed so often is worth so much more in the end, and
        where outcomes contradict each other, so that no end is worth much, the best end is worth all."""
        value = value * np.maximum(again, 1)
        if self.ways.doubt > 0.0:
            ends = [way.end for way, like in zip(ways, likeness, strict=True) if like > KNOWN]
            value = value * max(FULL / max([*ends, _LEAST]), 1.0) if ends else value
        return np.minimum(value, 1.0)

    def _hint(self, one: Encoded, counted: NDArray[np.bool_]) -> Array:
        """(T,) in (0, 1] how near a new goal has come to be, by its words: all that a novice can go by.

        tau^n of the nearest step that counts so far, n = 1 - episodes / 100. With more episodes it is one.
        """
        novice = 1.0 - self.graph.episodes / _EXPERIENCED
        if novice <= 0.0 or not one.goals[0].any():
            return np.ones(len(one.steps))
        near = self.calibration.goal_match(np.where(counted, one.steps @ one.goals[0], -1.0))
        return np.maximum.accumulate(near) ** novice

    def _read(self, learned: Learned | None, steps: Floats, goals: Floats) -> tuple[_Reading, Neighbours]:
        """Everything that the memory says of each step, and the memories near (phi, goal); in one search."""
        graph, n = self.graph, len(steps)
        role, here = graph.neighbours_by_role(None if learned is None else learned.z, steps, goals)
        ended, won = (graph.rate(here, name) for name in ("ended", "won"))
        # A memory of episodes that never say that they ended knows nothing about ends.
        well = won / (ended + 1e-3) if graph.column("won").any() else np.ones(n)
        reading = _Reading(
            value=graph.read(role),
            support=role.support,
            covered=here.support,
            dead_end=(ended - won) * here.support,
            good_end=1.0 - here.support * (1.0 - well),
            ending=np.zeros(n) if self.calibration.exclusive else won,
        )
        return reading, here

    def _follow(self, steps: Floats, ways: Sequence[Way], likeness: Array, evidence: Evidence) -> Followed:
        """How far the rollout follows the best way, for a goal that is known and for one that is new."""
        if not ways:
            none = np.zeros(len(steps))
            return Followed(none, none, none, none, none, none.astype(np.int64), -1)
        trust = ramp(likeness, 0.5, 0.9) * [way.sound for way in ways]
        told = self.ways.promising(steps[evidence.counted], ways, trust)
        ways = [ways[i] for i in told.tolist()]
        return follow(steps, ways, trust[told], evidence.counted, evidence.first, self.nearest(evidence))

    def nearest(self, evidence: Evidence) -> Array | None:
        """(T,) cosine to the memory that a landmark must be to be met; None where likeness is enough."""
        return evidence.similarity if self.calibration.exclusive else None


def _bad_end(read: _Reading, terminal: Array, last: int) -> float:
    """How bad an end it is that the environment made after the last step that counts, in [0, 1].

    Nothing comes after it: unless it is a good one, what was promising is lost. Steps that do not count
    cannot make it better, so they are no end of their own; nor are those of which the memory knows nothing,
    where it knows an earlier one.
    """
    told = np.flatnonzero(read.covered[last:] > 0.5)
    end = last + (int(told[-1]) if len(told) else 0)
    return 1.0 - float(ramp(min(terminal[last:].min(), read.good_end[end]), _BAD_END, _GOOD_END))
