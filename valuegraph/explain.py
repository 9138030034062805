"""Scores and memories in plain English: why a rollout earns what it earns, and which way leads to a goal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valuegraph.alignment import matched_landmarks
from valuegraph.context import Encoded
from valuegraph.episodes import Episode
from valuegraph.graph import Floats, ValueGraph
from valuegraph.records import counted
from valuegraph.scores import RolloutScore
from valuegraph.scoring import Scorer
from valuegraph.ways import landmark_cosines, landmarks_met

__all__ = ["FAR", "Explanation", "Landmark", "Recall", "explain_rollout", "recall_way"]

FAR = 0.2
"""Support below which a rollout is far from everything remembered, and its score little more than a guess."""
_ARRIVED = 0.5  # arrival from which on it is worth saying


@dataclass(frozen=True, slots=True)
class Landmark:
    """A step of the remembered way, and whether the rollout met it."""

    text: str
    weight: float
    """Share of the way that this landmark is worth; the weights of a way sum to one."""
    met_at: int | None
    """The step of the rollout that met it, None if none did in time."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a rollout scores what it scores. `str()` is English; the step rewards add up to the total."""

    episode_id: str
    total: float
    terminal: float
    instrumental: float
    support: float
    confidence: float
    arrival: float
    """How surely it has come to where successes end, in [0, 1]; then what it left out costs no more."""
    goal: str | None
    """The goal of the remembered way that the rollout was compared with."""
    landmarks: tuple[Landmark, ...]
    steps: tuple[str, ...]
    step_rewards: tuple[float, ...]
    counted: tuple[bool, ...]

    def __str__(self) -> str:
        lines = [
            f"Rollout {self.episode_id} scores {self.total:.2f}: terminal {self.terminal:.2f} (did it end "
            f"where good episodes end?), instrumental {self.instrumental:.2f} (did it get there their way?)."
        ]
        if self.support < FAR:
            lines.append("It is far from everything remembered, so this score is little more than a guess.")
        if self.confidence < 0.5:
            lines.append("The memory does not know this goal; the learned value decides more than the way.")
        if self.landmarks:
            met = [mark for mark in self.landmarks if mark.met_at is not None]
            lines.append(
                f"Of the remembered way to {_short(self.goal or 'an unnamed goal')!r} it met {len(met)} of "
                f"{counted(len(self.landmarks), 'landmarks')}, "
                f"{sum(m.weight for m in met):.0%} of their weight:"
            )
            lines += [f"  {_mark(mark)}" for mark in self.landmarks]
            if self.arrival > _ARRIVED and len(met) < len(self.landmarks):
                lines.append("It came to where successes end: what it left out costs no more.")
        else:
            lines.append("No successful way is remembered that it could be compared with.")
        lines.append("What each step earned:")
        lines += [
            f"  {reward:+.3f}  {t + 1:3d}. {_short(text)}{'' if counts else '   (no new evidence)'}"
            for t, (reward, text, counts) in enumerate(
                zip(self.step_rewards, self.steps, self.counted, strict=True)
            )
        ]
        lines.append(f"  {sum(self.step_rewards):+.3f}  in all")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Recall:
    """A remembered way: texts of memories from here to the goal, with the value of each."""

    texts: tuple[str, ...]
    values: tuple[float, ...]
    nodes: tuple[int, ...]
    support: float
    """How near the starting point is to a memory, in [0, 1]."""
    arrived: bool
    """Whether the last memory is one in which episodes have ended well."""

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        if not self.nodes:
            return "Nothing like this is remembered."
        lines = [f"{value:.2f}  {_short(text)}" for text, value in zip(self.texts, self.values, strict=True)]
        return "\n".join(
            [*lines, "(reaches the goal)" if self.arrived else "(no known way goes on from here)"]
        )


def explain_rollout(rollout: Episode, encoded: Encoded, scorer: Scorer) -> Explanation:
    """The explanation of the one rollout in `encoded`."""
    from valuegraph.fitting import step_words

    score = scorer.score_one(encoded, 0)
    graph = scorer.graph
    return Explanation(
        episode_id=rollout.episode_id,
        total=float(score.potential[-1]),
        terminal=float(score.terminal[-1]),
        instrumental=float(score.instrumental[-1]),
        support=float(score.support.mean()),
        confidence=score.confidence,
        arrival=score.arrival,
        goal=None if score.way < 0 else graph.goals.texts[graph.paths[score.way].goal],
        landmarks=_landmarks(encoded, score, scorer),
        steps=tuple(step_words(step) for step in rollout.steps),
        step_rewards=tuple(float(r) for r in np.diff(score.potential, prepend=0.0)),
        counted=tuple(bool(c) for c in score.counted),
    )


def _landmarks(encoded: Encoded, score: RolloutScore, scorer: Scorer) -> tuple[Landmark, ...]:
    if score.way < 0:
        return ()
    path, evidence = scorer.graph.paths[score.way], scorer.evidence(encoded)
    way = next(way for way in scorer.ways.to(path.goal) if way.path == score.way)
    cosine, _ = landmark_cosines(encoded.steps, [way], evidence.counted, evidence.first)
    match = landmarks_met(cosine[0], scorer.nearest(evidence))
    met = matched_landmarks(match, way.weights, score.counted)
    at = {match.landmark: match.step for match in met}
    return tuple(
        Landmark(scorer.graph.texts[node], float(weight), at.get(k))
        for k, (node, weight) in enumerate(zip(way.nodes.tolist(), way.weights, strict=True))
    )


def recall_way(graph: ValueGraph, phi: Floats, goal: Floats, steps: int) -> Recall:
    """From the nearest memory along the edges that lead to success most surely, argmax_j P_ij h_j.

    The start is found by iterative retrieval: the query moves to the kernel-weighted mean of what it
    retrieves until it rests on one memory (Ramsauer et al. 2021, "Hopfield Networks is All You Need").
    """
    near = graph.neighbours(graph.keys(None, phi, goal))
    if not len(graph) or near.kernel[0].max(initial=0.0) < 1e-6:
        near = graph.neighbours(graph.keys(None, phi, None))
    support = float(near.support[0])
    if not len(graph) or support < 1e-3:
        return Recall((), (), (), support, False)
    node = graph.settle(near)
    edges = graph.edges.snapshot()
    way, won = [node], graph.column("won")
    while won[way[-1]] == 0.0 and len(way) < steps:
        row = slice(edges.indptr[way[-1]], edges.indptr[way[-1] + 1])
        heads, weights = edges.indices[row], edges.weights[row]
        worth = np.where(np.isin(heads, way), -np.inf, weights * graph.values[heads])
        if not len(worth) or worth.max() <= 0.0:
            break
        way.append(int(heads[int(worth.argmax())]))
    return Recall(
        tuple(graph.texts[n] for n in way),
        tuple(float(graph.values[n]) for n in way),
        tuple(way),
        support,
        bool(won[way[-1]] > 0.0),
    )


def _mark(mark: Landmark) -> str:
    where = "missed     " if mark.met_at is None else f"met at {mark.met_at + 1:3d} "
    return f"{where}  {mark.weight:4.0%}  {_short(mark.text)}"


def _short(text: str, width: int = 88) -> str:
    line = " | ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= width else line[: width - 3] + "..."
