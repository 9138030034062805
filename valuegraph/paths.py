"""What was asked for, and the ways of the episodes that got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Goals", "Path", "Paths"]

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Goals:
    """Distinct goals, their embeddings and how often they were reached."""

    texts: list[str | None] = field(default_factory=list)
    rows: dict[str | None, int] = field(default_factory=dict)
    embeddings: list[Floats] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)
    reached: list[float] = field(default_factory=list)
    _stacked: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def table(self) -> Floats:
        """(G, d) the embeddings."""
        if len(self._stacked) < len(self.embeddings):
            self._stacked = np.stack(self.embeddings)
        return self._stacked

    def similarity(self, goal: Floats) -> NDArray[np.float64]:
        """(G,) of a goal to every known one; two absent goals are equal."""
        if not self.embeddings:
            return np.zeros(0)
        if not goal.any():
            return np.where(self.table.any(axis=1), 0.0, 1.0)
        return np.asarray(self.table @ goal).astype(np.float64)

    def row(self, text: str | None, embedding: Floats) -> int:
        """The number of a goal, which is given one here if it has none."""
        if text not in self.rows:
            self.rows[text] = len(self.texts)
            self.texts.append(text)
            self.embeddings.append(np.asarray(embedding, np.float32))
            self.tried.append(0.0)
            self.reached.append(0.0)
        return self.rows[text]

    def arrays(self, dim: int) -> dict[str, NDArray]:
        """What `from_arrays` takes, beside the texts."""
        return {
            "goals": self.table if self.texts else np.zeros((0, dim), np.float32),
            "goals_tried": np.array(self.tried),
            "goals_reached": np.array(self.reached),
        }

    @classmethod
    def from_arrays(cls, texts: Sequence[str | None], arrays: Mapping[str, NDArray]) -> Goals:
        """The inverse of `arrays`."""
        goals = cls()
        for text, embedding in zip(texts, arrays["goals"], strict=True):
            goals.row(text, embedding)
        goals.tried, goals.reached = arrays["goals_tried"].tolist(), arrays["goals_reached"].tolist()
        return goals


@dataclass(frozen=True, slots=True)
class Path:
    """The way one successful episode went."""

    goal: int
    """Row in the table of goals."""
    nodes: tuple[int, ...]
    outcome: float
    count: int = 1
    """How many episodes went exactly this way."""


class Paths:
    """Distinct paths, by goal and by the nodes that they visit."""

    def __init__(self) -> None:
        self.rows: list[Path] = []
        self.to: dict[int, list[int]] = {}
        """Numbers of the paths to each goal, in order of insertion."""
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def remember(self, path: Path, most: int | None = None) -> None:
        """Count a path; a new one is kept unless there are `most` to its goal already."""
        way = (path.goal, path.nodes)
        if way in self._numbers:
            number = self._numbers[way]
            old = self.rows[number]
            self.rows[number] = Path(*way, max(old.outcome, path.outcome), old.count + path.count)
            return
        known = self.to.get(path.goal, ())
        if most is None or len(known) < most:
            self._numbers[way] = len(self.rows)
            self.to.setdefault(path.goal, []).append(len(self.rows))
            self.rows.append(path)

    def arrays(self) -> dict[str, NDArray]:
        """What `from_arrays` takes."""
        paths = self.rows
        return {
            "path_nodes": np.array([node for path in paths for node in path.nodes], np.int64),
            "path_lengths": np.array([len(path.nodes) for path in paths], np.int64),
            "path_goals": np.array([path.goal for path in paths], np.int64),
            "path_outcomes": np.array([path.outcome for path in paths], np.float64),
            "path_counts": np.array([path.count for path in paths], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Paths:
        """The inverse of `arrays`."""
        paths, nodes = cls(), arrays["path_nodes"]
        ends = np.cumsum(arrays["path_lengths"])
        each = zip(ends - arrays["path_lengths"], ends, arrays["path_goals"], strict=True)
        for i, (start, end, goal) in enumerate(each):
            outcome, count = float(arrays["path_outcomes"][i]), int(arrays["path_counts"][i])
            paths.remember(Path(int(goal), tuple(nodes[start:end].tolist()), outcome, count))
        return paths
