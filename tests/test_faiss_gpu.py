"""Searches through a graph on a GPU. Without one, graph and GPU are stand-ins made of numpy, which take what
FAISS takes, refuse what it refuses and answer as it answers; the index and its copy are the real ones."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import faiss
import numpy as np
import pytest

from valuegraph import consolidation, faiss_cagra
from valuegraph.faiss_cagra import GraphCopy
from valuegraph.faiss_gpu import GpuCopy, gpu_available, has_cagra
from valuegraph.index import ExactIndex, FaissIndex, index_from_bytes, make_index, measure_recall, tier_for
from valuegraph.labels import Labels

DIM, WIDTH, SIZE, MORE = 20, 32, 4_000, 1_000  # rows are kept 32 wide
NOBODY = 4_294_967_295  # the label that a graph returns where it found too few
REAL = has_cagra() and gpu_available()


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clustered(seed: int, size: int) -> np.ndarray:
    rng, centres = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(60, DIM))
    return unit(centres[rng.integers(0, len(centres), size)] + 0.4 * rng.normal(size=(size, DIM)))


VECTORS = clustered(1, SIZE + MORE)
IDS = np.random.default_rng(2).choice(10**6, SIZE + MORE, replace=False)
QUERIES = unit(VECTORS[:40] + 0.05 * np.random.default_rng(3).normal(size=(40, DIM)))


# --- stand-ins ---------------------------------------------------------------------------------------------


class Resources:
    """One thread at a time, and work on a stream."""

    def __init__(self) -> None:
        self.stream, self.streams, self._busy = 0, [], threading.Lock()

    def setDefaultStream(self, device: int, stream: tuple[str, int]) -> None:
        assert (device, stream[0]) == (0, "stream")
        self.stream = stream[1]

    def revertDefaultStream(self, device: int) -> None:
        assert self.stream, "there was nothing to revert"
        self.stream = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        assert self._busy.acquire(blocking=False), "two threads on the same resources"
        self.streams.append(self.stream)
        try:
            yield
        finally:
            self._busy.release()


class Config:
    device, useFloat16, build_algo = 0, False, 0


class Parameters:
    def __init__(self, itopk_size: int = 64) -> None:
        self.itopk_size = itopk_size


def array_at(pointer: tuple[str, int], kind: type, shape: tuple[int, int]) -> np.ndarray:
    held = ctypes.c_char * (int(np.prod(shape)) * np.dtype(kind).itemsize)
    return np.frombuffer(held.from_address(pointer[1]), kind).reshape(shape)


class Flat:
    """GpuIndexFlatIP."""

    made: ClassVar[list[Flat]] = []

    def __init__(self, resources: Resources, d: int, config: Config) -> None:
        self.resources, self.d, self.half = resources, d, config.useFloat16
        self.rows = np.empty((0, d), np.float32)
        self.made.append(self)

    def add(self, x: np.ndarray) -> None:
        assert x.shape[1] == self.d
        assert x.dtype == np.float32
        with self.resources.used():
            self.rows = np.concatenate([self.rows, x.astype(np.float16) if self.half else x])

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > 2048:
            raise RuntimeError("k is too large")
        with self.resources.used():
            scores = x @ self.rows.T
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            room = ((0, 0), (0, k - order.shape[1]))
            found = np.take_along_axis(scores, order, 1)
            return np.pad(found, room, constant_values=-3e38), np.pad(order, room, constant_values=-1)

    def search_c(self, n: int, x: Any, k: int, similarity: Any, labels: Any) -> None:
        assert (x[0], similarity[0], labels[0]) == ("float", "float", "idx")
        found = self.search(array_at(x, np.float32, (n, self.d)), k)
        array_at(similarity, np.float32, (n, k))[:], array_at(labels, np.int64, (n, k))[:] = found


class Graph:
    """GpuIndexCagra: looks at as many candidates as it is told to, by a part of their numbers."""

    made: ClassVar[list[Graph]] = []
    hold: ClassVar[threading.Event | None] = None
    broken: ClassVar[bool] = False

    def __init__(self, resources: Resources, d: int, metric: int, config: Config) -> None:
        assert metric == faiss.METRIC_INNER_PRODUCT
        self.resources, self.d, self.way, self.rows, self.efforts = resources, d, config.build_algo, None, []
        self.made.append(self)

    def train(self, x: np.ndarray, *, numeric_type: int = faiss.Float32) -> None:
        assert x.shape[1] == self.d
        if self.rows is not None:
            return  # as the real one: no error, and nothing is added
        with self.resources.used():
            if self.broken:
                raise MemoryError("out of memory")
            if self.way == faiss.graph_build_algo_IVF_PQ and len(np.unique(x, axis=0)) < len(x) / 2:
                raise RuntimeError("too many invalid or duplicated neighbor nodes")
            if self.hold is not None:
                assert self.hold.wait(20)
            self.kind = numeric_type
            self.rows = np.array(x, np.float16 if numeric_type == faiss.Float16 else np.float32)

    add = train

    def search(
        self, x: np.ndarray, k: int, *, params: Any = None, numeric_type: int = faiss.Float32
    ) -> tuple[np.ndarray, np.ndarray]:
        assert x.shape[1] == self.d
        effort = -(-(params or Parameters()).itopk_size // 32) * 32
        if self.rows is None:
            raise RuntimeError("Index not trained")
        if numeric_type != self.kind:
            raise RuntimeError("Inconsistent numeric type for train and search")
        if k > 2048 or k > effort:
            raise RuntimeError(f"topk = {k} must be smaller than itopk_size = {effort}")
        assert k <= len(self.rows), "nobody says what comes of that"
        self.efforts.append(effort)
        with self.resources.used():
            rows, asked = self.rows.astype(np.float32), x.astype(np.float32)
            rough = asked[:, : self.d // 3] @ rows[:, : self.d // 3].T
            hidden = np.argsort(-rough, axis=1)[:, effort:]
            scores = asked @ rows.T
            np.put_along_axis(scores, hidden, -3e38, 1)
            order = np.argsort(-scores, axis=1)[:, :k]
            scores = np.take_along_axis(scores, order, 1)
            room = ((0, 0), (0, k - order.shape[1]))
            labels = np.where(scores < -1e38, NOBODY, order)
            return np.pad(scores, room, constant_values=-3e38), np.pad(labels, room, constant_values=NOBODY)

    def search_ex(self, n: int, x: Any, kind: int, k: int, similarity: Any, labels: Any, params: Any) -> None:
        assert (x[0], kind, similarity[0], labels[0]) == ("void", faiss.Float16, "float", "idx")
        found = self.search(array_at(x, np.float16, (n, self.d)), k, params=params, numeric_type=kind)
        array_at(similarity, np.float32, (n, k))[:], array_at(labels, np.int64, (n, k))[:] = found


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, and a FAISS that was built with cuVS."""
    for made in (Flat.made, Graph.made):
        made.clear()
    stand_ins = {
        "StandardGpuResources": Resources,
        "get_num_gpus": lambda: 1,
        "GpuIndexFlatConfig": Config,
        "GpuIndexFlatIP": Flat,
        "GpuIndexCagraConfig": Config,
        "GpuIndexCagra": Graph,
        "SearchParametersCagra": Parameters,
        "graph_build_algo_IVF_PQ": 0,
        "graph_build_algo_NN_DESCENT": 1,
        "cast_integer_to_cudastream_t": lambda number: ("stream", number),
        "cast_integer_to_void_ptr": lambda number: ("void", number),
        "cast_integer_to_float_ptr": lambda number: ("float", number),
        "cast_integer_to_idx_t_ptr": lambda number: ("idx", number),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(faiss, name, stand_in, raising=False)
    monkeypatch.setattr(faiss_cagra, "_GRAPH_FROM", 500)
    yield
    for builder in builders():
        builder.join(20)


def builders() -> list[threading.Thread]:
    """Who is building graphs in the background."""
    return [thread for thread in threading.enumerate() if "_build_and_release" in thread.name]


@pytest.fixture
def plain_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and the usual FAISS."""
    monkeypatch.delattr(faiss, "GpuIndexCagra")


def filled(device: str = "cuda", size: int = SIZE) -> FaissIndex:
    index = FaissIndex(DIM, "cagra", device=device)
    index.add(VECTORS[:size], IDS[:size])
    return index


def oracle_of(index: FaissIndex) -> ExactIndex:
    exact, ids = ExactIndex(DIM), index.ids()
    exact.add(index.reconstruct(ids), ids)
    return exact


def check(index: FaissIndex, recall: float = 0.9, k: int = 16) -> None:
    """Similarities are those of what the ids stand for, and most of the nearest are found."""
    found = index.search(QUERIES, k)
    assert np.isin(found.ids, index.ids()).all()
    assert all(len(set(row)) == k for row in found.ids.tolist())
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    near = index.reconstruct(np.unique(found.ids))[np.searchsorted(np.unique(found.ids), found.ids)]
    np.testing.assert_allclose(found.similarity, np.einsum("nd,nkd->nk", QUERIES, near), atol=2e-3)
    assert measure_recall(index, QUERIES, k, oracle=oracle_of(index)) >= recall


# --- without a card ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 40])
def test_on_the_host_it_is_half_precision_to_the_bit(batch: int) -> None:
    graph, flat = FaissIndex(DIM, "cagra"), FaissIndex(DIM, "flat_fp16")
    for index in (graph, flat):
        index.add(VECTORS, IDS)
        index.remove(IDS[50:500])
    again = index_from_bytes(graph.to_bytes(), device="cpu")
    for index in (graph, again):
        assert (index.tier, index.promote("cagra")) == ("cagra", False)
        mine, theirs = (each.search(QUERIES[:batch], 16) for each in (index, flat))
        np.testing.assert_array_equal(mine.similarity, theirs.similarity)
        np.testing.assert_array_equal(mine.ids, theirs.ids)
        np.testing.assert_array_equal(index.reconstruct(IDS[:9]), flat.reconstruct(IDS[:9]))


@pytest.mark.skipif(has_cagra(), reason="FAISS was built with cuVS")
def test_naming_it_on_cuda_names_the_package_that_is_missing() -> None:
    for call in (lambda: make_index(DIM, tier="cagra", device="cuda"), lambda: filled("cuda")):
        with pytest.raises(ValueError, match="faiss-gpu-cuvs"):
            call()


def test_labels_are_never_used_twice() -> None:
    labels = Labels(np.array([70, -1, 50]))
    assert (len(labels), labels.next, labels.tombstones) == (2, 3, [1])
    assert labels.put(np.arange(100, 400)).tolist() == list(range(3, 303))
    assert labels.pop(np.array([50, 51, 399])).tolist() == [2, 302]
    assert labels.put(np.array([50])).tolist() == [303]
    assert labels.find(np.array([70, 50, 399])).tolist() == [0, 303, -1]
    assert labels.tombstones == [1, 2, 302]
    assert labels.alive(301).tolist() == [301, 303]
    assert labels.ids[-1] == labels.ids[labels.next] == -1


# --- with a stand-in for one -------------------------------------------------------------------------------


@pytest.mark.usefixtures("card")
def test_control_the_stand_in_refuses_what_a_graph_refuses() -> None:
    graph, rows = (
        Graph(Resources(), WIDTH, faiss.METRIC_INNER_PRODUCT, Config()),
        np.eye(WIDTH, dtype=np.float16),
    )
    with pytest.raises(RuntimeError, match="not trained"):
        graph.search(rows, 1)
    graph.train(rows, numeric_type=faiss.Float16)
    graph.add(rows, numeric_type=faiss.Float16)
    assert len(graph.rows) == WIDTH
    with pytest.raises(RuntimeError, match="numeric type"):
        graph.search(rows, 1)
    with pytest.raises(RuntimeError, match="itopk_size"):
        graph.search(rows, 33, params=Parameters(32), numeric_type=faiss.Float16)
    with pytest.raises(AssertionError, match="nobody says"):
        graph.search(rows, 40, numeric_type=faiss.Float16)
    with pytest.raises(AssertionError, match="two threads"), graph.resources.used():
        graph.search(rows, 1, numeric_type=faiss.Float16)


@pytest.mark.usefixtures("card")
def test_a_graph_finds_most_of_the_nearest() -> None:
    index = filled()
    assert index.due
    assert index.promote("cagra")
    assert not index.promote("cagra")
    assert (len(Graph.made), len(Graph.made[0].rows), Graph.made[0].kind) == (1, SIZE, faiss.Float16)
    check(index)
    assert not Flat.made, "nothing is scanned beside it"
    for k in (1, 60, 300, 2_000):
        found = index.search(QUERIES, k)
        assert found.ids.shape == (40, k)
        assert (found.ids >= 0).all()  # also where the graph found too few
    assert max(Graph.made[0].efforts) >= 2_000


@pytest.mark.usefixtures("card")
def test_what_comes_and_goes_is_seen_without_a_new_graph() -> None:
    index = filled()
    index.promote()
    index.add(VECTORS[SIZE : SIZE + 100], IDS[SIZE : SIZE + 100])
    late = index.search(VECTORS[SIZE : SIZE + 100], 1)
    np.testing.assert_array_equal(late.ids[:, 0], IDS[SIZE : SIZE + 100])
    check(index)
    assert index.remove(IDS[:30]) == 30  # tombstones
    assert not np.isin(index.search(QUERIES, 16).ids, IDS[:30]).any()
    check(index)
    assert index.remove(IDS[SIZE : SIZE + 5]) == 5  # of those that came late
    assert index.remove(IDS[200:500]) == 300  # too many: labels move
    assert not index._labels.tombstones
    check(index)
    index.add(VECTORS[:30], IDS[30:60] + 10**7)
    index.remove(IDS[30:60])
    index.add(VECTORS[:30][::-1], IDS[30:60])  # ids that stand for other vectors now
    np.testing.assert_allclose(index.reconstruct(IDS[30:60]), VECTORS[:30][::-1], atol=1e-3)
    check(index)
    assert len(Graph.made) == 1


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_graph_is_due_when_an_eighth_has_changed(change: str) -> None:
    index = filled()
    index.promote()
    for start, stop in ((0, 150), (150, 490), (490, 800)):
        assert not index.due
        if change == "add":
            index.add(VECTORS[SIZE + start : SIZE + stop], IDS[SIZE + start : SIZE + stop])
        else:
            index.remove(IDS[start:stop])
    assert index.due
    assert index.promote()
    assert not index.due
    assert [len(graph.rows) for graph in Graph.made] == [SIZE, len(index)]
    check(index)


@pytest.mark.usefixtures("card")
def test_any_history_leaves_the_right_vectors() -> None:
    rng, index, oracle = np.random.default_rng(5), FaissIndex(DIM, "cagra", device="cuda"), ExactIndex(DIM)
    of_id = dict(zip(IDS.tolist(), VECTORS, strict=True))
    for step in range(40):
        fresh = np.setdiff1d(rng.choice(IDS, 150), oracle.ids())
        gone = rng.choice(oracle.ids(), min(len(oracle), int(rng.integers(0, 90))), replace=False)
        for target in (index, oracle):
            target.remove(gone)
            target.add(np.array([of_id[i] for i in fresh.tolist()]), fresh)
        if step % 7 == 6:
            index.promote()
        found, ids = index.search(QUERIES, 8), oracle.ids()
        assert np.isin(found.ids, ids).all()
        np.testing.assert_array_equal(np.sort(index.ids()), np.sort(ids))
    assert len(Graph.made) > 1
    check(index)


@pytest.mark.usefixtures("card")
def test_where_the_graph_finds_too_few_the_host_is_asked() -> None:
    index = filled()
    index.promote()
    query = VECTORS[0]
    while len(index) > SIZE - 300:
        index.remove(index.search(query, 60).ids[0])  # all that the graph knows near here
    exact = oracle_of(index).search(query, 100)
    copy, host = index._gpu, index._for_gpu()
    ask = 100 + len(index._labels.tombstones)
    wide = np.pad(query, (0, WIDTH - DIM))[None]
    assert (index._labels.ids[copy.search(host, wide, ask)[1]] >= 0).sum() < 100  # control
    np.testing.assert_allclose(index.search(query, 100).similarity, exact.similarity, atol=1e-3)
    assert (index.search(query, 100).ids >= 0).all()


@pytest.mark.usefixtures("card")
def test_labels_move_where_only_late_ones_go() -> None:
    index, late = filled(), slice(SIZE, SIZE + 400)
    index.promote()
    index.add(VECTORS[late], IDS[late])
    np.testing.assert_array_equal(index.search(VECTORS[late], 1).ids[:, 0], IDS[late])
    index.remove(IDS[SIZE : SIZE + 300])
    left = slice(SIZE + 300, SIZE + 400)
    np.testing.assert_array_equal(index.search(VECTORS[left], 1).ids[:, 0], IDS[left])
    check(index)
    assert len(Graph.made) == 1


@pytest.mark.usefixtures("card")
def test_rows_that_there_are_not_are_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    index, right = filled(), Graph.search
    index.promote()

    def lost(*given: Any, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        near, rows = right(*given, **more)
        return near, np.where(rows % 3 == 0, NOBODY, np.where(rows % 3 == 1, -1, rows))

    monkeypatch.setattr(Graph, "search", lost)
    check(index, recall=1.0)  # the host was asked


@pytest.mark.usefixtures("card")
def test_a_graph_of_other_vectors_is_left_alone() -> None:
    index = filled()
    index.promote()
    host, asked = replace(index._for_gpu(), epoch=99), np.pad(QUERIES, ((0, 0), (0, WIDTH - DIM)))
    exact = oracle_of(index).search(QUERIES, 16).similarity
    np.testing.assert_allclose(index._gpu.search(host, asked, 16)[0], exact, atol=1e-3)
    assert index._gpu.due(99, SIZE)


@pytest.mark.usefixtures("card")
def test_effort_is_what_the_recall_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts = []
    for wanted in (0.1, 0.98):
        monkeypatch.setattr(faiss_cagra, "_TUNED_RECALL", wanted)
        index = filled()
        index.promote()
        efforts.append(index._gpu._graph._effort)
    assert efforts[0] == 64 < efforts[1]
    assert measure_recall(index, QUERIES, oracle=oracle_of(index)) > 0.95


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda near, rows: (-near, rows), "similarities"),
        (lambda near, rows: (near, rows[:, ::-1]), "similarities"),
        (
            lambda near, rows: (near, np.where(rows % 3 == 0, NOBODY, rows)),
            r"finds 0\.[67]. of the neighbours",
        ),
    ],
)
def test_a_graph_that_answers_wrongly_is_not_used(
    wrong: Callable, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Graph.search
    monkeypatch.setattr(Graph, "search", lambda *given, **more: wrong(*right(*given, **more)))
    index = filled()
    with pytest.raises(RuntimeError, match=message):
        index.promote()
    assert index._gpu._graph is None
    check(index, recall=1.0)


@pytest.mark.usefixtures("card")
def test_rows_that_are_equal_get_their_graph_another_way() -> None:
    index = FaissIndex(DIM, "cagra", device="cuda")
    index.add(np.repeat(VECTORS[:300], 4, axis=0), np.arange(1_200))
    assert index.promote()
    assert [graph.way for graph in Graph.made] == [0, 1]
    assert Graph.made[0].rows is None
    found = index.search(VECTORS[:40], 4).ids
    np.testing.assert_array_equal(found // 4, np.repeat(np.arange(40)[:, None], 4, axis=1))


@pytest.mark.usefixtures("card")
def test_a_search_has_the_graph_built_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "hold", threading.Event())
    index = filled()
    before = index.search(QUERIES, 16)  # all of it is scanned
    np.testing.assert_allclose(before.similarity, oracle_of(index).search(QUERIES, 16).similarity, atol=1e-3)
    index.search(QUERIES, 16)
    building = builders()
    assert len(building) == 1, "one at a time"
    while not Graph.made:
        pass
    index.add(VECTORS[SIZE : SIZE + 50], IDS[SIZE : SIZE + 50])  # while it is being built
    index.remove(IDS[:280])
    check(index, recall=1.0)
    assert index._gpu._graph is None
    Graph.hold.set()
    building[0].join(20)
    assert index._gpu._graph.size == SIZE
    assert index._gpu._graph.first == SIZE
    check(index)
    np.testing.assert_array_equal(index.search(VECTORS[SIZE : SIZE + 50], 1).ids[:, 0], IDS[SIZE : SIZE + 50])
    index.remove(IDS[280:290])  # nobody builds any more: labels may move again
    assert not index._labels.tombstones
    check(index)


@pytest.mark.usefixtures("card")
def test_threads_search_add_and_remove_at_once() -> None:
    index, done, errors = filled(), threading.Event(), []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)
            done.set()

    def read() -> None:
        while not done.is_set():
            assert (index.search(QUERIES[:4], 8).ids >= 0).all()

    def write() -> None:
        for start in range(0, 900, 20):
            index.add(VECTORS[SIZE + start : SIZE + start + 20], IDS[SIZE + start : SIZE + start + 20])
            index.remove(IDS[start : start + 15])
        done.set()

    threads = [threading.Thread(target=guarded, args=(job,)) for job in (read, read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with index._rebuilding:  # whoever was building has ended
        pass
    check(index)
    assert len(Graph.made) >= 1


@pytest.mark.usefixtures("card")
def test_a_graph_that_cannot_be_built_leaves_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "broken", True)
    index = filled()
    with pytest.raises(MemoryError):
        index.promote("cagra")
    assert not index.due  # not again at once
    check(index, recall=1.0)
    monkeypatch.setattr(Graph, "broken", False)
    index.add(VECTORS[SIZE : SIZE + 600], IDS[SIZE : SIZE + 600])
    assert index.due
    assert index.promote()
    assert index._gpu._rest._index is None  # nothing is left to scan
    check(index)


@pytest.mark.usefixtures("card")
def test_a_builder_in_the_background_warns_and_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "broken", True)
    index = filled()
    index._rebuilding.acquire()
    with pytest.warns(UserWarning, match="scanned instead: out of memory"):
        index._build_and_release()
    assert not index._rebuilding.locked()
    check(index, recall=1.0)


@pytest.mark.usefixtures("card")
def test_tensors_find_the_same_on_their_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    stream = type("Stream", (), {"cuda_stream": 7})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    index = filled()
    index.promote()
    queries = torch.from_numpy(np.pad(QUERIES, ((0, 0), (0, WIDTH - DIM))))
    for change in (
        lambda: None,
        lambda: index.add(VECTORS[SIZE : SIZE + 60], IDS[SIZE : SIZE + 60]),
        lambda: index.remove(IDS[:300]),
    ):
        change()
        with index._lock.read:
            host, copy = index._for_gpu(), index._gpu
            similarity, labels = copy.search_tensor(host, queries, 16)
            ids = copy.ids_tensor(host, queries.device)[labels]
            plain = copy.search(host, queries.numpy(), 16)
        np.testing.assert_array_equal(labels.numpy(), plain[1])
        np.testing.assert_allclose(similarity.numpy(), plain[0], atol=1e-6)
        np.testing.assert_array_equal(ids.numpy(), index.search(QUERIES, 16).ids)
    right = Graph.search

    def lost(*given: Any, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        near, rows = right(*given, **more)
        return near, np.where(rows % 4, NOBODY, rows)

    monkeypatch.setattr(Graph, "search", lost)
    with index._lock.read:
        similarity, labels = copy.search_tensor(index._for_gpu(), queries, 300)
    assert ((labels >= 0) == (similarity > -np.inf)).all()
    assert 0.2 < (labels >= 0).float().mean() < 0.8
    used = [graph.resources for graph in Graph.made] + [flat.resources for flat in Flat.made]
    assert all(resources.stream == 0 and 7 in resources.streams for resources in used)
    assert len(used) > 2


@pytest.mark.usefixtures("card")
def test_a_small_graph_is_asked_for_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_cagra, "_GRAPH_FROM", 50)
    index = filled(size=100)
    index.promote()
    found = index.search(QUERIES, 130)
    assert (found.ids[:, :100] >= 0).all()
    assert (found.ids[:, 100:] == -1).all()
    assert (found.similarity[:, 100:] == -np.inf).all()


@pytest.mark.usefixtures("card")
def test_auto_never_chooses_a_graph_and_leaves_one_that_was_named() -> None:
    assert "cagra" not in {tier_for(10**n, "cuda") for n in range(10)}
    index = filled()
    index.promote()
    assert (index.tier, index.due, index.promote("auto")) == ("cagra", False, False)
    assert index.promote("flat_fp16")
    assert type(index._gpu) is GpuCopy
    check(index, recall=1.0)
    assert index.promote("cagra")
    assert type(index._gpu) is GraphCopy
    assert len(Graph.made) == 2
    check(index)
    again = index_from_bytes(filled().to_bytes(), device="auto")
    assert again.due
    assert type(again._gpu) is GraphCopy


@pytest.mark.usefixtures("card")
def test_a_memory_wakes_up_with_a_graph() -> None:
    slept = SimpleNamespace(index=filled(), width=DIM, config=SimpleNamespace(device="auto"))
    index = consolidation._index(slept, IDS[:900])
    assert (index.tier, index._gpu._graph.size) == ("cagra", 900)
    np.testing.assert_allclose(index.reconstruct(np.arange(900)), VECTORS[:900], atol=1e-3)
    slept.config.device = "cpu"
    assert consolidation._index(slept, IDS[:900]).tier == "flat"


@pytest.mark.usefixtures("plain_card")
def test_a_gpu_without_cuvs_scans_what_was_saved_elsewhere() -> None:
    saved = filled("cpu").to_bytes()
    index = index_from_bytes(saved, device="auto")
    assert (index.device, type(index._gpu)) == ("cuda", GpuCopy)
    check(index, recall=1.0)
    with pytest.raises(ValueError, match="faiss-gpu-cuvs"):
        index_from_bytes(saved, device="cuda")
    with pytest.raises(ValueError, match="faiss-gpu-cuvs"):
        index.promote("cagra")


# --- with a real one ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_cagra(), reason="FAISS was not built with cuVS")
def test_the_real_one_takes_what_the_stand_in_takes() -> None:
    """Names and arguments alone, for which no card is needed."""
    import inspect

    config = faiss.GpuIndexCagraConfig()
    assert (config.device, config.build_algo) == (0, faiss.graph_build_algo_IVF_PQ)
    assert config.store_dataset  # rows need not outlive the call that hands them over
    assert faiss.SearchParametersCagra(itopk_size=96).itopk_size == 96
    for name in ("train", "search", "search_ex"):
        mine, theirs = (
            inspect.signature(getattr(of, name)).parameters for of in (Graph, faiss.GpuIndexCagra)
        )
        assert len(mine) <= len(theirs)
        assert {n for n, p in mine.items() if p.kind is p.KEYWORD_ONLY} <= set(theirs)
    rows, found = np.eye(WIDTH, dtype=np.float32), (np.empty((9, 2), np.float32), np.empty((9, 2), np.int64))
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(rows)
    flat.search_ex(
        9,
        faiss.cast_integer_to_void_ptr(rows.ctypes.data),
        faiss.Float32,
        2,
        faiss.cast_integer_to_float_ptr(found[0].ctypes.data),
        faiss.cast_integer_to_idx_t_ptr(found[1].ctypes.data),
        None,
    )
    np.testing.assert_array_equal(found[1][:, 0], np.arange(9))


@pytest.fixture
def cuvs() -> None:
    if not REAL:
        pytest.skip("FAISS sees no GPU, or was not built with cuVS")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuvs")
def test_a_real_graph_follows_the_host() -> None:
    size = 20_000
    vectors, index = clustered(7, size + 500), FaissIndex(DIM, "cagra", device="cuda")
    index.add(vectors[:size], np.arange(size))
    assert index.promote()
    assert index._gpu._graph is not None
    for change in (
        lambda: None,
        lambda: index.add(vectors[size:], np.arange(size, size + 500)),
        lambda: index.remove(np.arange(0, 900, 3)),
        lambda: index.remove(np.arange(100, 140)),
    ):
        change()
        check(index, recall=0.95)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuvs")
def test_tensors_on_a_real_graph_stay_there() -> None:
    import torch

    size = 20_000
    vectors, index = clustered(7, size + 50), FaissIndex(DIM, "cagra", device="cuda")
    index.add(vectors[:size], np.arange(size))
    index.promote()
    index.add(vectors[size:], np.arange(size, size + 50))
    index.remove(np.arange(20))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        similarity, ids = index.search_tensor(torch.from_numpy(QUERIES).cuda(non_blocking=True), 16)
    stream.synchronize()
    assert similarity.is_cuda
    assert ids.is_cuda
    exact = oracle_of(index).search(QUERIES, 16)
    near = index.reconstruct(np.unique(ids.cpu().numpy()))
    place = np.searchsorted(np.unique(ids.cpu().numpy()), ids.cpu().numpy())
    true = np.einsum("nd,nkd->nk", QUERIES, near[place])
    np.testing.assert_allclose(similarity.cpu().numpy(), true, atol=3e-3)
    assert (true >= exact.similarity[:, -1:] - 3e-3).mean() >= 0.95
