"""The ways that remembered successes took to a goal, and how far a rollout has come on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valuegraph.alignment import match_strength, ordered_alignment
from valuegraph.context import REPEAT
from valuegraph.graph import Floats, ValueGraph
from valuegraph.transitions import Transitions
from valuegraph.utility import FLOOR, KNOWN, ramp

__all__ = [
    "Followed",
    "Way",
    "Ways",
    "arrived",
    "contradiction",
    "follow",
    "landmark_cosines",
    "landmarks_met",
]

Array = NDArray[np.float64]

_PATHS = 64  # that a rollout is aligned with
_TO_GOAL = 256  # ways to the goal itself that these are chosen from: one goal may ask for many recipes
_FLUKE, _SOUND = 0.3, 0.8  # value of a way's end, beside the best for its goal, from a fluke to a sound one
_DOUBTFUL = 5.0  # failures more than which no contradiction adds
_BEGUN, _MOST = 0.5, 0.8  # alignment from which on, and from which on fully, an end may be the end of a way
_PART, _MUCH = 0.4, 0.7  # the same of a step like those with which successes end
_MIXED, _ENDS = 0.5, 0.8  # share of good ends among what happened near a step, from some to all
_SEEN = 0.5  # nearness to transitions from which on they were seen
_TURNED = (0.3, 0.6)  # how surely a transition is the wrong way round, from what may be to what is
_ORDERLY = (0.45, 0.55)  # order of transitions, from the wrong one to one that is not
_SEVERAL = 2.0  # successes from which on an end that is also passed by is an end


class Way(NamedTuple):
    """A remembered path, ready for alignment."""

    path: int
    nodes: NDArray[np.int64]
    """(L,) that are its landmarks."""
    landmarks: Floats
    """(L, d) embeddings."""
    weights: Array
    """(L,) summing to one."""
    end: float
    """Value of its end, in [0, 1]."""
    sound: float
    """How far to trust that it was a success, in [0, 1]."""
    said: int
    """How often it says what it ends with: who stops before that is not at the end."""


class Ways:
    """The ways of a graph that nobody writes meanwhile."""

    def __init__(self, graph: ValueGraph) -> None:
        self.graph = graph
        self._to: dict[int, list[Way]] = {}
        self._known = np.array(sorted(graph.paths_to), np.int64)

    @cached_property
    def doubt(self) -> float:
        """How many imaginary failures count with the episodes that ended where a way ends."""
        return contradiction(self.graph.column("won"), self.graph.column("ended"))

    def towards(self, goal: Floats) -> tuple[list[Way], Array]:
        """Ways to the remembered goals nearest to this one, and the similarity of each: at most 256 to goals
        that are as good as this one, and of others what is missing to 64."""
        likeness = self.graph.goal_similarity(goal)
        ways: list[Way] = []
        similar: list[float] = []
        for row in self._known[np.argsort(-likeness[self._known], kind="stable")]:
            most = _TO_GOAL if likeness[row] > KNOWN else _PATHS
            if len(ways) >= most:
                break
            known = self.to(int(row))[: most - len(ways)]
            ways.extend(known)
            similar.extend([float(likeness[row])] * len(known))
        return ways, np.array(similar)

    def promising(self, steps: Floats, ways: Sequence[Way], trust: Array) -> NDArray[np.int64]:
        """Numbers, in order, of the 64 trusted ways on which these steps can have come furthest; the first
        if none is trusted, for one must be named.

        The bound trust sum_l w_l max_t m_tl, which no ordered alignment exceeds, takes one product of
        the steps with the distinct landmarks of all ways.
        """
        trusted = np.flatnonzero(trust > 0.0)
        if len(trusted) <= _PATHS:
            return trusted if len(trusted) else np.zeros(1, np.int64)
        some = [ways[i] for i in trusted.tolist()]
        nodes, where = np.unique(np.concatenate([way.nodes for way in some]), return_inverse=True)
        met = match_strength((self.graph.step_embeddings(nodes) @ steps.T).max(axis=1, initial=-1.0))
        owner = np.repeat(np.arange(len(some)), [len(way.nodes) for way in some])
        weights = np.concatenate([way.weights for way in some])
        bound = np.bincount(owner, weights * met[where]) * trust[trusted]
        return trusted[np.sort(np.argsort(-bound, kind="stable")[:_PATHS])]

    def to(self, goal: int) -> list[Way]:
        """The remembered ways to one goal, shortest first."""
        if goal not in self._to:
            graph = self.graph
            numbers = sorted(graph.paths_to[goal], key=lambda i: len(graph.paths[i].nodes))
            steps = [graph.step_embeddings(np.array(graph.paths[i].nodes)) for i in numbers]
            said = np.array([self._said(*one) for one in zip(numbers, steps, strict=True)])
            values, ended = graph.ends([graph.paths[i] for i in numbers])
            # An end that is passed so often is worth that much less each time; where outcomes contradict each
            # other, one alone is not believed.
            ends = np.minimum(values * said, 1.0) * ended / (ended + self.doubt)
            # A success that ends where others fail is taken for a fluke, or for a wrong outcome.
            sound = ramp(ends / max(ends.max(), FLOOR), _FLUKE, _SOUND)
            rows = zip(numbers, steps, ends.tolist(), sound.tolist(), said.tolist(), strict=True)
            self._to[goal] = [self._way(*row) for row in rows]
        return self._to[goal]

    def _said(self, path: int, steps: Floats) -> int:
        """How often a path says what it ends with; once where that may be chance."""
        if self.doubt > 0.0 or self.graph.column("won")[self.graph.paths[path].nodes[-1]] < _SEVERAL:
            return 1
        return int((steps @ steps[-1] > REPEAT).sum())

    def _way(self, path: int, steps: Floats, end: float, sound: float, said: int) -> Way:
        weights = self.graph.landmark_weights(self.graph.paths[path], again=said > 1)
        keep = weights > 0.0
        nodes = np.array(self.graph.paths[path].nodes)[keep]
        return Way(path, nodes, steps[keep], weights[keep], end, sound, said)


class Followed(NamedTuple):
    """Ordered alignment of every prefix with the best way, (T,) each."""

    strict: Array
    """Every landmark asks for those before it, and a step is the one that it is nearest to; in [0, 1]."""
    loose: Array
    """Neither: all there is to go by where the goal is new; in [0, 1]."""
    at_end: Array
    """How surely a step is the end of a sound way, most of which was done before; in [0, 1]."""
    begun: Array
    """How surely it is the beginning of a sound way; in [0, 1]."""
    end: Array
    """How surely it is the end of one, whatever was done before; in [0, 1]."""
    again: NDArray[np.int64]
    """How often a way says what it ends with, where a step that repeats another is such an end; else 0."""
    way: int
    """The path that fits best, -1 if there is none."""


def follow(
    steps: Floats,
    ways: Sequence[Way],
    trust: Array,
    counted: NDArray[np.bool_],
    first: NDArray[np.int64],
    nearest: Array | None,
) -> Followed:
    """How far every prefix of a rollout follows the ways, at least one.

    Args:
      steps: (T, d) embeddings.
      trust: (P,) in [0, 1], of each way.
      counted: (T,) which steps are evidence.
      first: (T,) the number of the first step that says the same.
      nearest: (T,) cosine of each step to the nearest memory; None where likeness is enough.
    """
    cosine, again = landmark_cosines(steps, ways, counted, first)
    again[trust == 0.0] = 0
    weights = np.zeros((len(ways), cosine.shape[2]))
    for row, way in zip(weights, ways, strict=True):
        row[: len(way.weights)] = way.weights
    seen, match, believed = counted | again.any(axis=0), landmarks_met(cosine, nearest), trust[:, None]
    loose = ordered_alignment(match_strength(cosine), weights, seen, prerequisites=False) * believed
    strict = ordered_alignment(match, weights, seen) * believed
    ends = match[np.arange(len(ways)), :, [len(way.weights) - 1 for way in ways]] * believed
    return Followed(
        strict=strict.max(axis=0),
        loose=loose.max(axis=0),
        at_end=(ends * ramp(strict, _BEGUN, _MOST)).max(axis=0),
        begun=(match[:, :, 0] * believed).max(axis=0),
        end=ends.max(axis=0),
        again=again.max(axis=0),
        way=ways[int(strict[:, -1].argmax())].path,
    )


def landmarks_met(cosine: Array, nearest: Array | None) -> Array:
    """(..., T, L) in [0, 1], how surely a step is a landmark and nothing else, from their cosines.

    `nearest` is (T,), the cosine of each step to the nearest memory; None where likeness is enough. Then a
    step is still no landmark while it is much nearer to another one of the same way.
    """
    return match_strength(cosine, cosine.max(axis=-1) if nearest is None else nearest)


def arrived(aligned: Followed, moved: Transitions, ending: Array, good_end: Array) -> Array:
    """(T,) in [0, 1], how surely a rollout has come to where successes end.

    At the end of a way, most of which it did; or where nearly all that happened was a good end, having done
    much of a way; or by transitions that were seen, from the beginning of a way to the end of one, none of
    them the wrong way round: known ways, put together, are a way. None of it, where most transitions are seen
    the other way round.

    Args:
      ending: (T,) share of what happened near a step that was a good end; 0 where each landmark is known by
        its words, so that what is missing of a way was not done.
      good_end: (T,) in [0, 1], one but for the say of the memory that no success ended here.
    """
    alike = ramp(ending, _MIXED, _ENDS) * ramp(aligned.strict, _PART, _MUCH)
    pieced = aligned.end * ramp(moved.reached, 0.0, _SEEN) * (1.0 - ramp(moved.against, *_TURNED)) * good_end
    return np.maximum(np.maximum(aligned.at_end, alike), pieced) * ramp(moved.order, *_ORDERLY)


def landmark_cosines(
    steps: Floats, ways: Sequence[Way], counted: NDArray[np.bool_], first: NDArray[np.int64]
) -> tuple[Array, NDArray[np.int64]]:
    """(P, T, L) cosine of each step to each landmark, -1 beyond a way's end and for steps that do not count.

    And (P, T) how often a way says what it ends with, where a step that repeats another says it as often: the
    only landmark that it can be, and it is that one; else 0.
    """
    lengths = np.array([len(way.weights) for way in ways])
    cosine = np.full((len(ways), lengths.max(), len(steps)), -1.0)
    held = np.arange(lengths.max()) < lengths[:, None]
    cosine[held] = np.concatenate([way.landmarks for way in ways]) @ steps.T
    cosine = cosine.transpose(0, 2, 1)
    idle, wanted = ~counted, np.array([way.said for way in ways])[:, None]
    again = np.zeros((len(ways), len(steps)), np.int64)
    if not idle.any():
        return cosine, again
    if (wanted > 1).any():
        each, last = np.arange(len(ways)), lengths - 1
        said = np.tril(first[:, None] == first).sum(axis=1)
        at_end = (cosine[each, :, last] > REPEAT) & (wanted > 1) & (said >= wanted) & idle
        again = at_end * wanted
    cosine[:, idle] = -1.0
    way, step = np.nonzero(again)
    cosine[way, step, lengths[way] - 1] = 1.0
    return cosine, again


def contradiction(won: Array, ended: Array) -> float:
    """How many imaginary failures to count with an end: none where all that ended alike is judged alike.

    Twice the strength of a beta-binomial prior, all of it failures: s = 2 rho / (1 - rho) in whole numbers,
    at most 5; rho is the variance of outcomes among those who ended at one and the same node, beside the 1/4
    of a tossed coin:

      rho = 4 sum_i w_i (n_i - w_i) / (n_i - 1) / sum_i n_i,  n_i >= 2.

    With a tenth of the outcomes wrong s is 1, with a quarter 5. Where outcomes are graded, rather than 0 or
    1, one that lies between says nothing of this: none.

    Args:
      won: (n,) summed outcomes w of those who ended at a node.
      ended: (n,) how many there were.

    >>> contradiction(np.array([4.0, 0.0, 1.0]), np.array([4.0, 4.0, 1.0]))
    0.0
    >>> contradiction(np.array([3.0, 1.0, 1.0]), np.array([4.0, 4.0, 1.0]))
    5.0
    """
    several = ended >= 2.0
    w, n = won[several], ended[several]
    if not len(n) or (won[ended > 0.0] % 1.0).any():
        return 0.0
    rho = 4.0 * float((w * (n - w) / (n - 1.0)).sum() / n.sum())
    return float(np.round(min(2.0 * rho / max(1.0 - rho, 1e-9), _DOUBTFUL)))
