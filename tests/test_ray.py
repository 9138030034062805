"""Past one machine: a real cluster of two nodes on this box, and results that equal those of one process."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from valuegraph import ArrayEncoder, Episode, FitConfig, RewardModel, Step
from valuegraph.adjacency import CSR
from valuegraph.block_propagation import Block, cut, exchange, propagate_blocks
from valuegraph.cli import main
from valuegraph.credit import discounted_credit
from valuegraph.episodes import EpisodeError, write_episodes
from valuegraph.propagation import first_hit, max_product
from valuegraph.ray_fit import EmbedEpisodes, KnownEncoder, embedded_dataset, fit_on_ray
from valuegraph.ray_workers import WorkerLostError, Workers, load_ray
from valuegraph.sharded_index import Shard, ShardedIndex, merge
from valuegraph.vectors import ExactIndex, SearchResult

DIM = 16
CPU = 0.1

# What Ray warns of, or leaves to the garbage collector, is its own affair.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Two nodes, each a process group with an object store of its own, connected over loopback."""
    pytest.importorskip("ray", reason="the extra valuegraph[ray] is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 96 * 2**20, "node_ip_address": "127.0.0.1"}
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
        try:
            cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False)
            yield ray
        finally:
            ray.shutdown()
            cluster.shutdown()


def points(n: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def walk(nodes: int, seed: int = 0) -> tuple[CSR, np.ndarray]:
    """Mostly steps to a node made a little later, one in four back to anywhere; few ends, some good."""
    rng = np.random.default_rng(seed)
    tails = np.repeat(np.arange(nodes), 4)
    heads = np.minimum(tails + rng.geometric(0.1, len(tails)), nodes - 1)
    back = rng.random(len(tails)) < 0.25
    heads[back] = rng.integers(0, nodes, back.sum())
    reward = np.where(rng.random(nodes) < 0.05, rng.uniform(0.2, 1.0, nodes), 0.0)
    weights = (rng.uniform(0.1, 1.0, (nodes, 4)) * ((1.0 - reward) / 4.0)[:, None]).ravel()
    return CSR(np.arange(0, len(tails) + 1, 4), heads, weights), reward


class Here:
    """`Workers` in this process, for what does not depend on where they are."""

    def __init__(self, kind: type, arguments: list[tuple[Any, ...]]) -> None:
        self.all_of_them = [kind(*each) for each in arguments]

    def each(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        return [getattr(it, method)(*own) for it, own in zip(self.all_of_them, arguments, strict=True)]


# --- without a cluster ---


def test_answers_are_merged_by_similarity_and_equals_by_id() -> None:
    a = SearchResult(np.array([[3.0, 2.0, 2.0]], np.float32), np.array([[8, 5, 7]]))
    b = SearchResult(np.array([[2.0, 1.0, -np.inf]], np.float32), np.array([[6, 1, -1]]))
    for order in ([a, b], [b, a]):
        assert merge(order, 4).ids.tolist() == [[8, 5, 6, 7]]
    assert merge([b], 3).ids.tolist() == [[6, 1, -1]]


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 5, 60])
def test_blocks_that_exchange_boundaries_equal_the_whole_graph(blocks: int, best: bool) -> None:
    for seed in range(3):
        csr, reward = walk(60 if blocks == 60 else 500, seed)
        expected = max_product(csr, reward, 0.97) if best else first_hit(csr, reward, 0.97, tol=1e-12)
        parts = cut(csr, reward, 0.97, blocks, best=best)
        solution = exchange(Here(Block, parts.arguments), parts)  # type: ignore[arg-type]
        assert solution.converged
        np.testing.assert_allclose(solution.values, expected.values, atol=1e-7)
        # Control: without the exchange the blocks do not agree with the whole.
        alone = exchange(Here(Block, parts.arguments), parts, max_rounds=0)  # type: ignore[arg-type]
        assert blocks == 1 or np.abs(alone.values - expected.values).max() > 1e-2
        assert not alone.converged


def test_a_loop_through_two_blocks_does_not_feed_on_itself() -> None:
    csr = CSR([0, 1, 2], [1, 0], [2.0, 2.0])  # duplicate edges added up weigh more than one
    expected = max_product(csr, [0.5, 0.0], 1.0).values
    parts = cut(csr, [0.5, 0.0], 1.0, 2, best=True)
    np.testing.assert_allclose(
        exchange(Here(Block, parts.arguments), parts).values,  # type: ignore[arg-type]
        expected,
    )
    assert expected.max() < 0.6


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"blocks": 11}, "blocks"),
        ({"blocks": 0}, "blocks"),
        ({"gamma": 1.5}, "gamma"),
        ({"reward": np.zeros(9)}, "shape"),
        ({"reward": np.full(10, np.nan)}, "reward"),
        ({"reward": np.full(10, 1.1)}, "reward"),
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any], named: str) -> None:
    csr, reward = walk(10)
    arguments = {"reward": reward, "gamma": 0.9, "blocks": 2} | wrong
    with pytest.raises(ValueError, match=named):
        propagate_blocks(csr, **arguments)


@pytest.mark.parametrize("shards", [0, -1])
def test_a_wrong_number_of_shards_is_named(shards: int) -> None:
    with pytest.raises(ValueError, match="shards"):
        ShardedIndex(DIM, shards)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"valuegraph\[ray\]"):
        load_ray()


# --- the index ---


def test_shards_equal_one_exact_index(ray: Any) -> None:
    vectors, queries, ids = points(500), points(20, 1), np.random.default_rng(2).permutation(2_000)[:500]
    single, sharded = ExactIndex(DIM), ShardedIndex(DIM, 2, tier="flat", num_cpus=CPU)
    for part in (slice(0, 300), slice(300, 500)):
        single.add(vectors[part], ids[part])
        sharded.add(vectors[part], ids[part])
    assert nodes_in_use(ray) == 2
    assert sharded.tier == "sharded flat"

    for k in (1, 16, 600):  # more than there are, too
        ours, expected = sharded.search(queries, k), single.search(queries, k)
        np.testing.assert_allclose(ours.similarity, expected.similarity, atol=1e-6)
        np.testing.assert_array_equal(ours.ids, expected.ids)
    np.testing.assert_array_equal(sharded.ids(), ids)
    np.testing.assert_array_equal(sharded.reconstruct(ids[::-7]), vectors[::-7])

    gone = ids[::3]
    assert sharded.remove(gone) == single.remove(gone) == len(gone)
    assert sharded.remove(gone) == 0
    assert len(sharded) == len(single)
    np.testing.assert_array_equal(sharded.search(queries, 16).ids, single.search(queries, 16).ids)

    # A batch with one bad id changes no shard.
    with pytest.raises(ValueError, match=f"id {ids[1]} is in the index already"):
        sharded.add(points(3), [9_000, ids[1], 9_001])
    with pytest.raises(ValueError, match="finite"):
        sharded.add(np.full((1, DIM), np.nan), [9_004])
    with pytest.raises(ValueError, match="id 12345 is not in the index"):
        sharded.reconstruct([12_345])
    np.testing.assert_array_equal(sharded.ids(), single.ids())

    # Equals come in the order of their ids, whichever shard they are in.
    twins, corner = np.arange(5_000, 5_010), 2.0 * np.eye(1, DIM)
    sharded.add(np.tile(corner, (10, 1)), twins)
    assert sharded.search(corner, 7).ids.tolist() == [twins[:7].tolist()]
    sharded.remove(twins)

    # What was saved is a second index, which outlives the first.
    kept = sharded.to_bytes()
    for damaged, named in ((kept[:-1], "bytes of shards"), (single.to_bytes(), "not a sharded one")):
        with pytest.raises(ValueError, match=named):
            ShardedIndex.from_bytes(damaged)
    sharded.close()
    again = ShardedIndex.from_bytes(kept, num_cpus=CPU)
    np.testing.assert_array_equal(again.ids(), single.ids())
    np.testing.assert_array_equal(again.search(queries, 16).ids, single.search(queries, 16).ids)
    again.add(points(1, 5), [3_000])
    assert again.ids()[-1] == 3_000

    # A shard that dies is not passed over: no answer is better than one that lacks a half.
    kill(again._workers, 1)
    for use in (lambda: again.search(queries, 4), lambda: again.add(points(1), [7]), lambda: len(again)):
        with pytest.raises(WorkerLostError, match="has died"):
            use()
    again.close()


def kill(workers: Workers, place: int) -> None:
    """End the process of a worker, as the system does when memory runs out."""
    pid = workers._ray.get(workers._actors[place].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def nodes_in_use(ray: Any) -> int:
    actors = ray._private.state.actors().values()
    return len({actor["Address"]["NodeID"] for actor in actors if actor["State"] == "ALIVE"})


def test_too_small_a_cluster_is_named_and_left_free(ray: Any) -> None:
    with pytest.raises(TimeoutError, match="2 of 2 workers found no place within 1 seconds: each needs 3"):
        Workers(Shard, [(0, 2, DIM, "exact"), (1, 2, DIM, "exact")], num_cpus=3.0, patience=1.0)


# --- values ---


class Struck(Workers):
    """Lose the first worker before the third question."""

    asked = 0

    def each(self, method: str, arguments: Any) -> list[Any]:
        self.asked += 1
        if self.asked == 3:
            kill(self, 0)
        return super().each(method, arguments)


def test_blocks_on_two_nodes_equal_one_graph_though_one_dies(ray: Any) -> None:
    csr, reward = walk(600, seed=3)
    solution = propagate_blocks(csr, reward, 0.97, 2, best=True, num_cpus=CPU)
    np.testing.assert_allclose(solution.values, max_product(csr, reward, 0.97).values, atol=1e-12)

    parts = cut(csr, reward, 0.97, 2)
    workers = Struck(Block, parts.arguments, num_cpus=CPU, restarts=1)
    solution = exchange(workers, parts)
    workers.close()
    assert workers.asked > 4
    assert solution.converged
    np.testing.assert_allclose(solution.values, first_hit(csr, reward, 0.97, tol=1e-12).values, atol=1e-6)


# --- fit ---


def episodes(count: int) -> list[Episode]:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(6, 4))
    made = []
    for i in range(count):
        won = i % 2 == 0
        order = np.arange(6) if won else rng.permutation(6)
        steps = tuple(Step(tuple(row.tolist())) for row in places[order] + 0.05 * rng.normal(size=(6, 4)))
        goal = f"reach place {i % 3}. Then stop there."
        made.append(Episode(f"walk {i}", steps, goal=goal, outcome=float(won), terminated=True))
    return made


def test_a_fit_on_the_cluster_is_the_fit_of_one_process(ray: Any, tmp_path, monkeypatch) -> None:
    data, asked = episodes(40), []
    write_episodes(data, tmp_path / "walks.jsonl")
    (tmp_path / "short.yaml").write_text("epochs: 1\ndevice: cpu\n")
    own = ArrayEncoder.encode_steps
    monkeypatch.setattr(
        ArrayEncoder, "encode_steps", lambda self, steps, *_: asked.append(len(steps)) or own(self, steps)
    )
    command = ["fit", str(tmp_path / "walks.jsonl"), "--config", str(tmp_path / "short.yaml"), "--out"]
    assert main([*command, str(tmp_path / "far"), "--ray"]) == 0
    assert not asked  # every step was embedded by the cluster
    far = RewardModel.load(tmp_path / "far")
    here = RewardModel.fit(data, config=FitConfig(epochs=1, device="cpu"), progress=False)
    assert isinstance(far.encoder, ArrayEncoder)
    np.testing.assert_array_equal(far.score(data).total, here.score(data).total)
    np.testing.assert_array_equal(far.graph.values, here.graph.values)


def test_text_is_embedded_bit_for_bit_and_credited_in_order(ray: Any, small_episodes, text_encoder) -> None:
    some, config = [*small_episodes[:5], replace(small_episodes[5], outcome=None)], FitConfig()
    dataset = embedded_dataset(some, text_encoder, config, workers=1, num_cpus=CPU, rows_at_once=2)
    rows = list(dataset.iter_rows())
    assert [row["number"] for row in rows] == list(range(6))
    for row, episode in zip(rows, some, strict=True):
        steps = np.frombuffer(row["steps"], "<f4").reshape(len(episode.steps), -1)
        np.testing.assert_array_equal(steps, text_encoder.encode_steps(episode.steps))
        known = [] if episode.outcome is None else [episode.outcome]
        credit = [discounted_credit(y, len(episode.steps), config.gamma) for y in known]
        np.testing.assert_array_equal(np.frombuffer(row["credit"], "<f8"), np.concatenate([[], *credit]))


def test_an_episode_that_the_encoder_refuses_is_named() -> None:
    data = episodes(3)
    encoder = ArrayEncoder.fit(data)
    odd = Episode("odd one", (Step((1.0, 2.0)),), outcome=1.0)
    record = '{"episode_id": "odd one", "steps": [{"observation": [1.0, 2.0]}], "outcome": 1.0}'
    row = {
        name: column[0]
        for name, column in EmbedEpisodes(encoder, "step", 0.9)({"number": [0], "episode": [record]}).items()
    }
    with pytest.raises(EpisodeError, match="episode 'odd one'"):
        KnownEncoder(encoder, "step").learn(odd, row)
    with pytest.raises(EpisodeError, match="no episode"):
        fit_on_ray([])
