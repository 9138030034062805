"""`RewardModel.fit` with the long part on a Ray cluster: episodes are embedded and credited by Ray Data.

The learner is trained and the graph is written where the call is made, from the same numbers: an embedding
depends on its step alone, bit for bit, so on machines of one kind the model is that of a fit in one process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from valuegraph.config import FitConfig
from valuegraph.context import clauses
from valuegraph.credit import discounted_credit
from valuegraph.encoders import Encoder, encoder_for
from valuegraph.episodes import Episode, EpisodeError, Step
from valuegraph.ray_workers import PATIENCE, connect

if TYPE_CHECKING:
    from valuegraph.reward_model import RewardModel

__all__ = ["EmbedEpisodes", "KnownEncoder", "embedded_dataset", "fit_on_ray"]


def fit_on_ray(
    episodes: Sequence[Episode],
    encoder: Encoder | None = None,
    config: FitConfig | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    **options: Any,
) -> RewardModel:
    """`RewardModel.fit`, whose steps and goals are embedded by actors of a Ray cluster.

    address: of the cluster, see `ray_workers.connect`.
    workers, num_cpus, num_gpus: see `embedded_dataset`.
    options: those of `RewardModel.fit`.

    Raises what `RewardModel.fit` raises, and `ImportError` naming the extra where Ray is not installed.
    """
    from valuegraph.reward_model import RewardModel  # here, so that actors need not load torch with it

    episodes, config = list(episodes), config or FitConfig()
    encoder = encoder_for(episodes, encoder)
    connect(address)
    rows = embedded_dataset(
        episodes, encoder, config, workers=workers, num_cpus=num_cpus, num_gpus=num_gpus
    ).iter_rows()
    known = KnownEncoder(encoder, config.evidence)
    for row in rows:
        known.learn(episodes[row["number"]], row)
    model = RewardModel.fit(episodes, known, config, **options)
    model.encoder = encoder
    return model


def embedded_dataset(
    episodes: Sequence[Episode],
    encoder: Encoder,
    config: FitConfig,
    *,
    workers: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    rows_at_once: int = 16,
) -> Any:
    """A Ray dataset of one row an episode, in their order, nothing shuffled: `number`, the episode's place;
    `steps` (T, d) and `goals` (1 + clauses, d), none without a goal, as bytes of float32; `credit` (T,) as
    bytes of float64, y_t = gamma^(T-1-t) outcome, empty where the outcome is not known; and `error`, why the
    encoder refused the episode, empty where it did not.

    workers: at most so many actors; by default as many as the cluster has CPUs for.
    num_cpus, num_gpus: what Ray reserves for each.
    rows_at_once: episodes that an actor is sent at once.
    """
    ray = connect()
    from ray.data import ActorPoolStrategy

    if workers is None:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1.0) / num_cpus))
    plain = [replace(episode, metadata={}).to_dict() for episode in episodes]
    items = [{"number": i, "episode": json.dumps(each)} for i, each in enumerate(plain)]
    blocks = max(1, min(-(-len(items) // rows_at_once), 4 * workers))
    dataset = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        EmbedEpisodes,
        fn_constructor_args=(encoder, config.evidence, config.gamma),
        batch_size=rows_at_once,
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
        compute=ActorPoolStrategy(min_size=1, max_size=workers),
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.wait_for_min_actors_s = int(PATIENCE)
    return dataset


class EmbedEpisodes:
    """What an actor does with a batch of episodes; the encoder is loaded once in each."""

    def __init__(self, encoder: Encoder, evidence: str, gamma: float) -> None:
        self._encoder, self._evidence, self._gamma = encoder, evidence, gamma

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Columns `number` and `episode` -> those of `embedded_dataset`."""
        rows = [self._row(json.loads(record)) for record in batch["episode"]]
        columns = {name: [row[name] for row in rows] for name in ("steps", "goals", "credit", "error")}
        return {"number": [int(number) for number in batch["number"]], **columns}

    def _row(self, record: dict[str, Any]) -> dict[str, Any]:
        episode = Episode.from_dict(record)
        y, length = episode.outcome, len(episode.steps)
        try:
            steps = self._encoder.encode_steps(episode.steps, self._evidence)
            goals = self._encoder.encode_goals(_goal_texts(episode))
        except EpisodeError as error:
            # A refusal travels as a value: of an exception Ray brings only the text.
            return {"steps": b"", "goals": b"", "credit": b"", "error": str(error)}
        credit = np.zeros(0) if y is None else discounted_credit(y, length, self._gamma)
        return {
            "steps": steps.astype("<f4").tobytes(),
            "goals": goals.astype("<f4").tobytes(),
            "credit": credit.astype("<f8").tobytes(),
            "error": "",
        }


class KnownEncoder:
    """An `Encoder` that knows the rows of steps and goals already, and asks another one for the rest."""

    def __init__(self, encoder: Encoder, evidence: str) -> None:
        self._encoder, self._evidence = encoder, evidence
        self._steps: dict[Step, np.ndarray] = {}
        self._goals: dict[str, np.ndarray] = {}
        self.id, self.fingerprint, self.dim = encoder.id, encoder.fingerprint, encoder.dim

    def learn(self, episode: Episode, row: Mapping[str, Any]) -> None:
        """Take over one row of an `embedded_dataset`; raises `EpisodeError` where that holds a refusal."""
        if row["error"]:
            raise EpisodeError(f"episode {episode.episode_id!r}: {row['error']}")
        self._steps.update(zip(episode.steps, _rows(row["steps"], self.dim), strict=True))
        self._goals.update(zip(_goal_texts(episode), _rows(row["goals"], self.dim), strict=True))

    def encode_steps(self, steps: Sequence[Step], evidence: str = "step") -> np.ndarray:
        """See `Encoder.encode_steps`."""
        if not steps or evidence != self._evidence or any(step not in self._steps for step in steps):
            return self._encoder.encode_steps(steps, evidence)
        return np.stack([self._steps[step] for step in steps])

    def encode_goals(self, goals: Sequence[str | None]) -> np.ndarray:
        """See `Encoder.encode_goals`."""
        if not goals or any(goal is not None and goal not in self._goals for goal in goals):
            return self._encoder.encode_goals(goals)
        zero = np.zeros(self.dim, np.float32)
        return np.stack([zero if goal is None else self._goals[goal] for goal in goals])

    def to_config(self) -> dict[str, Any]:
        """That of the encoder behind it."""
        return self._encoder.to_config()


def _goal_texts(episode: Episode) -> list[str]:
    return [] if episode.goal is None else [episode.goal, *clauses(episode.goal)]


def _rows(data: bytes, dim: int) -> Iterator[np.ndarray]:
    return iter(np.frombuffer(data, "<f4").reshape(-1, dim))
