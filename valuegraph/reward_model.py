"""The front door: fit, score, update, explain, recall, save and load."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.bound_folder import BoundFolder
from valuegraph.calibration import Calibration
from valuegraph.config import FitConfig
from valuegraph.consolidation import Consolidation, consolidated
from valuegraph.context import encode_episodes
from valuegraph.encoders import Encoder, TextEncoder, encoder_for
from valuegraph.episodes import Episode, EpisodeError, Step, as_episodes, check_episodes, check_goal
from valuegraph.explain import Explanation, Recall, explain_rollout, recall_way
from valuegraph.fitting import fit_memory, visits_of
from valuegraph.graph import ValueGraph
from valuegraph.index import FaissIndex, promote, sampled_recall
from valuegraph.locks import ReadWriteLock
from valuegraph.model_state import Parts, packed, unpacked
from valuegraph.networks import InstrumentalNet
from valuegraph.persistence import read_folder
from valuegraph.records import KnownEpisodeError
from valuegraph.scores import Scores, collect
from valuegraph.scoring import Scorer
from valuegraph.threads import one_thread

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["FitConfig", "RewardModel", "UpdateReport"]

_LOGGER = logging.getLogger(__name__)

Observation = str | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What an update did."""

    episodes: int
    """Episodes written."""
    new_nodes: int
    new_edges: int
    durable: bool
    """Whether it is on disk: true for a model bound to a folder by `load` or `save`."""


class RewardModel:
    """Scores rollouts by how they ended and got there, learned from episodes and their outcome alone.

    Scoring is thread-safe and deterministic, and each rollout's score is independent of its batch. Updates
    exclude each other and see no reader half-way.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: FitConfig,
        graph: ValueGraph,
        net: InstrumentalNet | None,
        calibration: Calibration,
    ) -> None:
        self.encoder, self.config = encoder, config
        self._graph, self._net, self._calibration = graph, net, calibration
        self._scorer = Scorer(graph, net, calibration)
        self._lock = ReadWriteLock()
        self._updating = threading.Lock()
        self._promotion = threading.Thread()
        self._ids: set[str] = set()
        self._bound: BoundFolder | None = None

    @classmethod
    def fit(
        cls,
        episodes: Sequence[Episode],
        encoder: Encoder | None = None,
        config: FitConfig | None = None,
        *,
        net: InstrumentalNet | None = None,
        progress: bool = True,
    ) -> RewardModel:
        """Learn from whole episodes: train, write the memory, calibrate on a held-out part.

        The default encoder suits the observations: `TextEncoder` for text, `ArrayEncoder.fit` for vectors.
        `net` is a learner trained elsewhere, with the same encoder and config; none is trained here then.
        Raises `EpisodeError` for episodes that cannot be used, naming them.
        """
        episodes = as_episodes(episodes)
        _check_parts(encoder, config, net)
        encoder, config = encoder_for(episodes, encoder), config or FitConfig()
        fitted = fit_memory(episodes, encoder, config, progress, net)
        model = cls(encoder, config, fitted.graph, fitted.net, fitted.calibration)
        model._ids = {episode.episode_id for episode in episodes}
        return model

    @classmethod
    def create(cls, encoder: Encoder | None = None, config: FitConfig | None = None) -> RewardModel:
        """An empty memory, to be grown by `update` from an agent's own episodes; nothing is trained."""
        _check_parts(encoder, config)
        encoder, config = encoder or TextEncoder(), config or FitConfig()
        graph = ValueGraph(encoder.dim, 0, config)
        return cls(encoder, config, graph, None, Calibration(saturation=1.0))

    @property
    def graph(self) -> ValueGraph:
        """The memory; do not change it."""
        return self._graph

    def score(self, rollouts: Sequence[Episode], *, ongoing: bool = False) -> Scores:
        """Score rollouts; their outcomes, rewards and metadata are not read.

        `ongoing` rollouts are not over: U_t is then, up to the last step, what it will be in the whole.
        """
        rollouts = as_episodes(rollouts, "rollouts")
        if not rollouts:
            raise EpisodeError("there is no rollout to score")
        encoded = encode_episodes(rollouts, self.encoder, self.config.evidence)
        with self._lock.read:
            scores = self._scorer.score(encoded)
        if ongoing:
            scores = [score._replace(potential=score.running) for score in scores]
        return collect([rollout.episode_id for rollout in rollouts], scores)

    def update(self, episodes: Sequence[Episode]) -> UpdateReport:
        """Write episodes into the memory, link them, send credit backwards; no gradient step.

        For a model bound to a folder the update is durable when this returns, and if this raises, neither
        memory nor folder has changed. Raises `KnownEpisodeError` for an episode that is already remembered.
        """
        episodes = as_episodes(episodes)
        check_episodes(episodes)
        if not episodes:
            raise EpisodeError("there is no episode to update with")
        with self._updating:
            for episode in episodes:
                if episode.episode_id in self._ids:
                    raise KnownEpisodeError(f"episode {episode.episode_id!r} is already remembered")
            prepared = self._prepare(episodes)
            if self._bound is not None:
                self._bound.append(json.dumps([e.to_dict() for e in episodes], allow_nan=False).encode())
            report = self._apply(episodes, prepared)
            if self._bound is not None and self._bound.overdue:
                try:
                    self._bound.write(self._state())
                except OSError as error:  # the update itself is in the log, durable and applied
                    _LOGGER.warning("%s; its log goes on growing", error)
            self._promote()
            return report

    def consolidate(self, budget: int | None = None, **options: float) -> Consolidation:
        """Sleep: merge near-duplicates, let unused edges fade, forget what is worth least down to a budget
        of nodes, replay the stored paths backwards; nothing is refitted. See `consolidation.consolidated`.

        Without a budget, on the recorded episodes of three environments (`benchmarks.sleep`), totals moved by
        .007 on average and by .2 at most, and no column of the quality benchmark lost more than .02.

        For a model bound to a folder it is durable when this returns; if it raises, nothing has changed.
        """
        with self._updating:
            with self._lock.read:
                graph, report = consolidated(self._graph, budget, **options)
            scorer = Scorer(graph, self._net, self._calibration)
            if self._bound is not None:
                self._bound.write(self._packed(graph))
            with self._lock.write:
                self._graph, self._scorer = graph, scorer
            return report

    def _promote(self) -> None:
        """Rebuild the index in the background where its size calls for another tier; nobody waits for it."""
        index = self._graph.index
        if isinstance(index, FaissIndex) and index.due and not self._promotion.is_alive():
            self._promotion = threading.Thread(target=promote, args=(index,), daemon=True)
            self._promotion.start()

    def _prepare(self, episodes: Sequence[Episode]) -> Any:
        encoded = encode_episodes(episodes, self.encoder, self.config.evidence)
        with one_thread():
            return visits_of(episodes, encoded, self._calibration, self._net, self._graph)

    def _apply(self, episodes: Sequence[Episode], visits: Any) -> UpdateReport:
        graph, durable = self._graph, self._bound is not None
        with self._lock.write, one_thread():
            nodes, edges = len(graph), len(graph.edges)
            graph.write(visits)
            self._scorer.refresh()
            self._ids.update(episode.episode_id for episode in episodes)
            return UpdateReport(len(episodes), len(graph) - nodes, len(graph.edges) - edges, durable)

    def explain(self, rollout: Episode) -> Explanation:
        """Why a rollout scores what it scores, in English and in numbers that add up to the score."""
        encoded = encode_episodes(as_episodes([rollout], "rollout"), self.encoder, self.config.evidence)
        with self._lock.read:
            return explain_rollout(rollout, encoded, self._scorer)

    def recall(
        self, observation: Observation, goal: str | None = None, *, action: str | None = None, steps: int = 32
    ) -> Recall:
        """The remembered way from here to the goal, by iterative retrieval; at most `steps` memories."""
        check_goal(goal)
        if steps < 1:
            raise ValueError(f"steps: must be at least 1, got {steps}")
        phi = self.encoder.encode_steps([Step(observation, action)], self.config.evidence)
        target = self.encoder.encode_goals([goal])
        with self._lock.read:
            return recall_way(self._graph, phi, target, steps)

    def potential(self, observations: Sequence[Observation], goal: str | None = None) -> NDArray[np.float64]:
        """(n,) Psi in [0, 1]: the graph's value read at each state by itself, 0 off the support.

        A function of the state alone, as potential-based shaping needs (Ng, Harada & Russell 1999).
        """
        queries = self._queries(observations, goal)
        with self._lock.read:
            # One search a state: in a batch the last bits of a similarity depend on its companions.
            near = [self._graph.neighbours(query[None]) for query in queries]
            return np.array([float((self._graph.read(n) * n.support)[0]) for n in near])

    def novelty(self, observations: Sequence[Observation], goal: str | None = None) -> NDArray[np.float64]:
        """(n,) in (0, 1]: 1 / sqrt(1 + visits) of the memory a state falls in, 1 where there is none."""
        queries = self._queries(observations, goal)
        with self._lock.read:
            return 1.0 / np.sqrt(1.0 + self._graph.visits_near(queries))

    def _queries(self, observations: Sequence[Observation], goal: str | None) -> NDArray[np.float32]:
        check_goal(goal)
        listed: Any = observations  # whoever knows the types needs no such check
        if isinstance(listed, str) or not isinstance(listed, Iterable):  # each letter of a text would be one
            raise EpisodeError("observations: must be a list of them; put one in brackets")
        phi = self.encoder.encode_steps([Step(observation) for observation in observations], "observation")
        goals = np.repeat(self.encoder.encode_goals([goal]), len(phi), axis=0)
        return self._graph.keys(None, phi, goals)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to a folder, atomically, and bind to it: updates are durable there."""
        path = Path(path)
        with self._updating:
            target = self._bound
            if target is None or target.path != path or not target.locked:
                self.close()
                target = BoundFolder.taken(path)
            try:
                target.write(self._state())
            finally:
                target.close()
            self._bound = target

    def _state(self) -> dict[str, Any]:
        with self._lock.read:
            return self._packed(self._graph)

    def _packed(self, graph: ValueGraph) -> dict[str, Any]:
        parts = Parts(self.encoder, self.config, graph, self._net, self._calibration)
        return packed(parts, sorted(self._ids))

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, device: str = "auto", encoder: Encoder | None = None
    ) -> RewardModel:
        """Read a saved model and the updates logged since, and bind to the folder.

        `encoder` replaces the saved one, for instance to share its cache; its fingerprint must be the same.
        Raises `ModelFolderError` naming the file that is missing, damaged or of a newer format.
        """
        _check_parts(encoder, None)
        folder = read_folder(path)
        model = cls(*unpacked(folder, Path(path), device, encoder))
        model._ids = set(folder.documents["episodes"])
        model._bound = BoundFolder(Path(path), folder.snapshot, folder.last_sequence)
        for record in folder.updates:
            episodes = [Episode.from_dict(episode, where=str(path)) for episode in json.loads(record.payload)]
            model._apply(episodes, model._prepare(episodes))
            model._bound.sequence = record.sequence
        return model

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write a copy with a model card, as the Hugging Face Hub expects; does not bind the model to it."""
        from valuegraph import hub

        bound = self._bound
        if bound is not None and Path(folder).resolve() == bound.path.resolve():
            self.save(bound.path)
            state, summary = self._copied()
            hub.add_card(bound.path, state["config"], summary)
        else:
            hub.save_pretrained(folder, *self._copied())

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        *,
        device: str = "auto",
        encoder: Encoder | None = None,
        **options: Any,
    ) -> RewardModel:
        """A model of the Hugging Face Hub (`owner/name`) or of a folder, bound to neither: updates stay here.

        options: of the download, such as `revision`, `cache_dir`, `token`, `local_files_only`.
        """
        from valuegraph import hub

        model = cls.load(hub.fetch(name_or_path, **options), device=device, encoder=encoder)
        model._bound = None
        return model

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload a copy to the Hugging Face Hub; see `hub.push_to_hub`. Returns the commit's address."""
        from valuegraph import hub

        return hub.push_to_hub(repo_id, *self._copied(), **options)

    def _copied(self) -> tuple[dict[str, Any], dict[str, Any]]:
        with self._updating, self._lock.read:
            return self._packed(self._graph), self.summary()

    def close(self) -> None:
        """Give up the folder's write lock, which the first update takes; the model stays usable."""
        if self._bound is not None:
            self._bound.close()

    def __enter__(self) -> RewardModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def index_recall(self, k: int = 16, sample: int = 64) -> float:
        """Share of the k nearest memories that the index finds, in [0, 1], against an exact search."""
        with self._lock.read:
            return sampled_recall(self._graph.index, k, sample=sample)

    def summary(self) -> dict[str, Any]:
        """Sizes and provenance, for `valuegraph inspect`."""
        graph = self._graph
        return {
            "episodes": graph.episodes,
            "nodes": len(graph),
            "edges": len(graph.edges),
            "paths": len(graph.paths),
            "goals": len(graph.goals.texts),
            "dim": self.encoder.dim,
            "index": graph.index.tier,
            "encoder": self.encoder.id,
            "learner": self._net is not None,
        }


def _check_parts(encoder: Any, config: Any, net: Any = None) -> None:
    """Raise `TypeError` for a name instead of an encoder, a dict of settings, a learner, not its net."""
    if encoder is not None and not hasattr(encoder, "encode_steps"):
        raise TypeError(f"encoder: must be an encoder, such as TextEncoder({encoder!r}), not {encoder!r}")
    if config is not None and not isinstance(config, FitConfig):
        raise TypeError(f"config: must be a FitConfig (see FitConfig.from_dict, from_file), not {config!r}")
    if net is not None and not isinstance(net, InstrumentalNet):
        raise TypeError(f"net: must be an InstrumentalNet, such as a learner's net, not {net!r:.60}")
