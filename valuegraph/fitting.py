"""From episodes and their outcomes to memory, learner and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuegraph.calibration import (
    BY_GAINS,
    BY_MEMORY,
    Calibration,
    calibrate,
    exclusive,
    memory_share,
    saturation,
)
from valuegraph.config import FitConfig
from valuegraph.context import (
    Encoded,
    encode_episodes,
    learner_inputs,
    misdirected,
    repeated_steps,
)
from valuegraph.credit import discounted_credit
from valuegraph.encoders import Encoder
from valuegraph.episodes import Episode, EpisodeError, Step
from valuegraph.evidence import step_text
from valuegraph.graph import Memory, ValueGraph, Visit
from valuegraph.networks import InstrumentalNet, read_steps
from valuegraph.scores import RolloutScore
from valuegraph.scoring import Scorer
from valuegraph.threads import one_thread
from valuegraph.training import train_net

__all__ = ["Fitted", "fit_memory", "outcomes_of", "step_words", "training_sets", "visits_of"]

_FEWEST = 50  # episodes below which none is held out: a handful decides nothing
_MISLED = 1.0  # share of successes that the learner also sees with a goal that was not theirs
_TOGETHER = 256  # episodes that the learner reads in one call


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit leaves behind."""

    graph: ValueGraph
    net: InstrumentalNet
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class Prepared:
    """Episodes as everything that learns from them wants them."""

    episodes: Sequence[Episode]
    encoded: Encoded
    tasks: NDArray[np.int64]
    """(B,) number of each episode's goal."""
    calibration: Calibration
    outcomes: NDArray[np.float64]
    """(B,) in [0, 1]."""
    counted: NDArray[np.bool_]
    """(N,) which steps count."""
    inputs: NDArray[np.float32]
    """(N, width) what the learner reads."""


def prepare(episodes: Sequence[Episode], encoder: Encoder, config: FitConfig) -> Prepared:
    """Encode, calibrate and complete the outcomes. Raises `EpisodeError` where nothing says how one went."""
    encoded = encode_episodes(episodes, encoder, config.evidence)
    calibration = calibrate(encoded, _known_outcomes(episodes), _tasks(episodes))
    return _prepared(episodes, encoded, calibration)


def _prepared(episodes: Sequence[Episode], encoded: Encoded, calibration: Calibration) -> Prepared:
    outcomes, counted = outcomes_of(episodes, encoded, calibration), countable(encoded)
    inputs = learner_inputs(encoded, counted)
    return Prepared(episodes, encoded, _tasks(episodes), calibration, outcomes, counted, inputs)


def fit_memory(
    episodes: Sequence[Episode],
    encoder: Encoder,
    config: FitConfig,
    progress: bool = True,
    net: InstrumentalNet | None = None,
) -> Fitted:
    """Train the learner unless one is given, write the graph, calibrate on episodes held out of both."""
    known = prepare(episodes, encoder, config)
    parts = split(len(episodes), config)
    if net is None:
        net = train_net(encoder.dim, *_training_sets(known, parts, config), config, progress)
    with one_thread():
        return _remember(known, parts, net.cpu().eval(), config)


def _remember(
    known: Prepared,
    parts: tuple[NDArray[np.int64], NDArray[np.int64]],
    net: InstrumentalNet,
    config: FitConfig,
) -> Fitted:
    """Write the training part, calibrate on the held-out part, then write that as well."""
    train, held_out = parts
    encoded, calibration = known.encoded, known.calibration
    graph = ValueGraph(encoded.steps.shape[1], config.z_dim, config)
    visits = _visits(known, net, graph)
    graph.write([visits[i] for i in train])
    if len(held_out):
        calibration = _calibrated(Scorer(graph, net, calibration), known, held_out)
        graph.write([visits[i] for i in held_out])
    return Fitted(graph, net, calibration)


def _calibrated(scorer: Scorer, known: Prepared, held_out: NDArray[np.int64]) -> Calibration:
    """The scale of scores, from episodes that are not in the memory yet."""

    def scored(episodes: NDArray[np.int64], choice: bool, share: float = BY_MEMORY) -> list[RolloutScore]:
        scorer.calibration = replace(calibration, exclusive=choice, saturation=1.0, memory_share=share)
        return [scorer.score_one(known.encoded, b) for b in episodes.tolist()]

    calibration, won = scorer.calibration, known.outcomes[held_out] > 0.5
    alone, alike = scored(held_out, True), scored(held_out, False)
    choice = exclusive(*(np.array([s.instrumental[-1] for s in scores])[won] for scores in (alone, alike)))
    held = alone if choice else alike
    by_memory = [score.running for score, ok in zip(held, won, strict=True) if ok]
    by_gains = [score.running for score in scored(held_out[won], choice, BY_GAINS)]
    share = memory_share(by_memory, by_gains)
    held = scored(held_out, choice, share)
    totals = np.array([score.closing[-1] for score in held])
    short = [s.closing[-2] for s, ok in zip(held, won, strict=True) if ok and len(s.closing) > 1]
    full = saturation(totals, won, np.array(short))
    return replace(calibration, exclusive=choice, saturation=full, memory_share=share)


def countable(encoded: Encoded) -> NDArray[np.bool_]:
    """(N,) which steps of remembered episodes count: all but repeats."""
    return ~repeated_steps(encoded)


def split(episodes: int, config: FitConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and held-out episodes, each in their order."""
    held = round(config.validation * episodes) if episodes >= _FEWEST else 0
    order = np.random.default_rng(config.seed).permutation(episodes)
    return np.sort(order[held:]), np.sort(order[:held])


def training_sets(
    episodes: Sequence[Episode], encoder: Encoder, config: FitConfig | None = None
) -> tuple[Any, Any]:
    """Training and held-out `TrainingSet` for an `EpisodeDataModule` in a `Trainer` of your own."""
    config = config or FitConfig()
    return _training_sets(prepare(episodes, encoder, config), split(len(episodes), config), config)


def outcomes_of(
    episodes: Sequence[Episode], encoded: Encoded, calibration: Calibration
) -> NDArray[np.float64]:
    """(B,) outcomes; where one is missing, the calibrated goal similarity of the final state stands in.

    Raises `EpisodeError` for an episode with neither outcome nor goal.
    """
    outcomes = _known_outcomes(episodes)
    missing = np.isnan(outcomes)
    if missing.any():
        for i in np.flatnonzero(missing).tolist():
            if episodes[i].goal is None:
                name = episodes[i].episode_id
                raise EpisodeError(f"episode {name!r}: neither outcome nor goal, so nothing says how it went")
        cosine = np.sum(encoded.steps[encoded.starts[1:] - 1] * encoded.goals, axis=1)
        outcomes[missing] = calibration.goal_match(cosine[missing])
    return outcomes


def visits_of(
    episodes: Sequence[Episode],
    encoded: Encoded,
    calibration: Calibration,
    net: InstrumentalNet | None,
    graph: ValueGraph,
) -> list[Visit]:
    """Episodes as `ValueGraph.write` takes them."""
    return _visits(_prepared(episodes, encoded, calibration), net, graph)


def _visits(known: Prepared, net: InstrumentalNet | None, graph: ValueGraph) -> list[Visit]:
    encoded, roles = known.encoded, None if net is None else _roles(known, net)
    visits = []
    for b, episode in enumerate(known.episodes):
        rows = encoded.rows(b)
        steps = encoded.steps[rows]
        z = None if roles is None else roles[rows]
        keys = graph.keys(z, steps, np.broadcast_to(encoded.goals[b], steps.shape))
        texts = [step_words(step) for step in episode.steps]
        outcome = float(known.outcomes[b])
        visits.append(
            Visit(
                encoded.goals[b],
                episode.goal,
                [Memory(key, text) for key, text in zip(keys, texts, strict=True)],
                discounted_credit(outcome, len(texts), graph.config.gamma),
                outcome,
                episode.terminated and not episode.truncated,
            )
        )
    return visits


def _roles(known: Prepared, net: InstrumentalNet) -> NDArray[np.float32]:
    """(N, z_dim) the role z of every step."""
    starts = known.encoded.starts
    parts = []
    for first in range(0, len(starts) - 1, _TOGETHER):
        bounds = starts[first : first + _TOGETHER + 1]
        rows = slice(bounds[0], bounds[-1])
        parts.append(read_steps(net, known.inputs[rows], known.counted[rows], bounds - bounds[0]).z)
    return np.concatenate(parts)


def step_words(step: Step) -> str:
    """What a step said, in words; the first numbers of a vector."""
    if isinstance(step.observation, str):
        return step_text(step)
    numbers = ", ".join(f"{x:.3g}" for x in step.observation[:6])
    observation = f"[{numbers}{', ...' if len(step.observation) > 6 else ''}]"
    return observation if step.action is None else f"> {step.action}\n{observation}"


def _tasks(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """(B,) number of each episode's goal: episodes with one goal are one task."""
    numbers: dict[str | None, int] = {}
    return np.array([numbers.setdefault(episode.goal, len(numbers)) for episode in episodes], np.int64)


def _known_outcomes(episodes: Sequence[Episode]) -> NDArray[np.float64]:
    return np.array([np.nan if e.outcome is None else e.outcome for e in episodes], np.float64)


def _training_sets(
    known: Prepared, parts: tuple[NDArray[np.int64], NDArray[np.int64]], config: FitConfig
) -> tuple[Any, Any]:
    train, held_out = parts
    return _training_set(known, train, config, _MISLED), _training_set(known, held_out, config)


def _training_set(known: Prepared, part: NDArray[np.int64], config: FitConfig, misled: float = 0.0) -> Any:
    """The counted steps of some episodes, and of copies of a share of their successes that were after
    something else, worth nothing."""
    from valuegraph.learner import TrainingSet

    encoded, inputs, outcomes = known.encoded, known.inputs, known.outcomes
    lengths = np.diff(encoded.starts).tolist()
    targets = [discounted_credit(y, n, config.gamma) for y, n in zip(outcomes, lengths, strict=True)]
    credit = np.concatenate(targets).astype(np.float32)
    rows, numbers = _counted_rows(encoded, known.counted, part), part
    if misled:
        rng = np.random.default_rng(config.seed)
        chosen = part[(outcomes[part] > 0.5) & (rng.random(len(part)) < misled)]
        copies, sources = misdirected(encoded, chosen, rng)
        kept = countable(copies)
        rows += [r + len(inputs) for r in _counted_rows(copies, kept, np.arange(len(sources)))]
        inputs = np.concatenate([inputs, learner_inputs(copies, kept)])
        credit = np.concatenate([credit, np.zeros(len(copies.steps), np.float32)])
        numbers = np.concatenate([part, sources])
    return TrainingSet(rows, inputs, credit, numbers, known.tasks[numbers], copies=len(rows) - len(part))


def _counted_rows(
    encoded: Encoded, counted: NDArray[np.bool_], episodes: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The rows of each episode that count; its first where none does."""
    rows = []
    for b in episodes.tolist():
        span = encoded.rows(b)
        kept = np.flatnonzero(counted[span])
        rows.append(span.start + (kept if len(kept) else np.zeros(1, np.int64)))
    return rows
