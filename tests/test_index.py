"""Every index through the same tests, its values compared with the exact oracle."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from valuegraph.faiss_gpu import gpu_available
from valuegraph.growing import LabelOf
from valuegraph.index import (
    TIERS,
    ExactIndex,
    FaissIndex,
    VectorIndex,
    index_from_bytes,
    make_index,
    measure_recall,
    promote,
    sampled_recall,
    search_beside,
    search_both,
    tier_for,
)
from valuegraph.locks import ReadWriteLock
from valuegraph.tiers import TRAIN_FROM

DIM, SIZE = 16, 10_500  # enough for every tier to be trained
BACKENDS = ["exact", *TIERS]
# How far a similarity may be from the true one, and what share of the true neighbours has to be found.
TOLERANCE = {
    "exact": 1e-6,
    "flat": 1e-6,
    "flat_fp16": 1e-3,
    "cagra": 1e-3,
    "ivf_fp16": 1e-3,
    "ivf_sq8": 1e-2,
    "ivf_pq": 0.2,
}
RECALL = {
    "exact": 1.0,
    "flat": 1.0,
    "flat_fp16": 0.99,
    "cagra": 0.99,
    "ivf_fp16": 0.95,
    "ivf_sq8": 0.9,
    "ivf_pq": 0.4,
}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clustered(seed: int, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(150, DIM))
    return unit(centres[rng.integers(0, len(centres), size)] + 0.4 * rng.normal(size=(size, DIM)))


VECTORS = clustered(1)
IDS = np.random.default_rng(2).choice(10**9, SIZE, replace=False)
QUERIES = unit(VECTORS[:60] + 0.05 * np.random.default_rng(3).normal(size=(60, DIM)))
OF_ID = dict(zip(IDS.tolist(), VECTORS, strict=True))


def filled(tier: str, size: int = SIZE) -> VectorIndex:
    index = make_index(DIM, tier=tier, device="cpu")
    index.add(VECTORS[:size], IDS[:size])
    return index


@pytest.fixture(scope="module")
def bytes_of() -> Callable[[str], bytes]:
    """Full indexes by tier, built once; every test loads its own."""
    built: dict[str, bytes] = {}

    def get(tier: str) -> bytes:
        if tier not in built:
            built[tier] = filled(tier).to_bytes()
        return built[tier]

    return get


@pytest.fixture(params=BACKENDS)
def index(request: pytest.FixtureRequest, bytes_of: Callable[[str], bytes]) -> VectorIndex:
    return index_from_bytes(bytes_of(request.param), device="cpu")


@pytest.fixture(scope="module")
def oracle() -> VectorIndex:
    return filled("exact")


# --- search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 60])
def test_values_are_those_of_the_oracle(index: VectorIndex, oracle: VectorIndex, batch: int) -> None:
    result, exact = index.search(QUERIES[:batch], 16), oracle.search(QUERIES[:batch], 16)
    tolerance = TOLERANCE[index.tier]
    assert result.similarity.dtype == np.float32
    assert result.ids.dtype == np.int64
    assert (np.diff(result.similarity, axis=1) <= 0.0).all()
    for row, query in enumerate(QUERIES[:batch]):
        assert len(set(result.ids[row].tolist())) == 16
        true = [OF_ID[i] @ query for i in result.ids[row].tolist()]
        np.testing.assert_allclose(result.similarity[row], true, atol=tolerance)
    # Nearest by nearest, not only on the whole: missing a neighbour costs little where others are as near.
    np.testing.assert_allclose(result.similarity[:, 0], exact.similarity[:, 0], atol=max(tolerance, 0.02))
    if index.tier in ("exact", "flat"):
        np.testing.assert_allclose(result.similarity, exact.similarity, atol=1e-6)
        np.testing.assert_array_equal(result.ids, exact.ids)


def test_recall_against_the_oracle(index: VectorIndex, oracle: VectorIndex) -> None:
    assert measure_recall(index, QUERIES, 16, oracle=oracle) >= RECALL[index.tier]
    assert measure_recall(index, QUERIES, 16) >= 0.95  # the search alone, whatever the tier rounds away


def test_recall_sees_a_search_that_looks_too_little(
    bytes_of: Callable[[str], bytes], oracle: VectorIndex
) -> None:
    index = index_from_bytes(bytes_of("ivf_fp16"), device="cpu")
    between = unit(np.random.default_rng(6).normal(size=(60, DIM)))  # far from every centre
    index._host.nprobe = index._host.nlist
    assert measure_recall(index, between, 16, oracle=oracle) > 0.98
    index._host.nprobe = 1
    assert measure_recall(index, between, 16, oracle=oracle) < 0.8


def test_one_query_may_come_without_a_batch(index: VectorIndex) -> None:
    one, batch = index.search(QUERIES[0], 5), index.search(QUERIES[:1], 5)
    np.testing.assert_array_equal(one.ids, batch.ids)
    assert one.similarity.shape == (1, 5)


def test_missing_neighbours_are_minus_infinity_and_minus_one(index: VectorIndex) -> None:
    result = index.search(QUERIES[:3], SIZE + 7)
    assert (result.ids[:, :SIZE] >= 0).all()
    assert np.isfinite(result.similarity[:, :SIZE]).all()
    assert (result.ids[:, SIZE:] == -1).all()
    assert (result.similarity[:, SIZE:] == -np.inf).all()
    assert len(set(result.ids[0, :SIZE].tolist())) == SIZE


@pytest.mark.parametrize("tier", BACKENDS)
def test_an_empty_index_finds_nothing(tier: str) -> None:
    index = make_index(DIM, tier=tier, device="cpu")
    for queries in (QUERIES[:1], QUERIES):
        result = index.search(queries, 2)
        assert (result.ids == -1).all()
        assert (result.similarity == -np.inf).all()
    assert (len(index), len(index.ids()), index.remove([3])) == (0, 0, 0)
    assert measure_recall(index, QUERIES) == 1.0


@pytest.mark.parametrize("tier", ["flat", "flat_fp16"])
def test_batches_and_single_queries_agree(tier: str) -> None:
    """Two ways of computing the same, chosen by the number of queries."""
    index = filled(tier, 5_000)
    batch = index.search(QUERIES, 16)
    for row, query in enumerate(QUERIES):
        np.testing.assert_allclose(index.search(query, 16).similarity[0], batch.similarity[row], atol=1e-5)


# --- adding and removing -----------------------------------------------------------------------------------


def test_reconstruct_gives_back_what_was_added(index: VectorIndex) -> None:
    pick = np.random.default_rng(4).permutation(SIZE)[:50]
    atol = {"ivf_sq8": 0.01, "ivf_pq": 0.3}.get(index.tier, 1e-3)
    np.testing.assert_allclose(index.reconstruct(IDS[pick]), VECTORS[pick], atol=atol)
    np.testing.assert_array_equal(index.ids(), IDS)
    assert index.reconstruct([]).shape == (0, DIM)


@pytest.mark.parametrize("count", [7, 256, 257, 3_000])
def test_what_was_removed_is_not_found(index: VectorIndex, count: int) -> None:
    """Both while removed vectors are only marked and after they were taken out."""
    gone, kept = IDS[:count], IDS[count:]
    assert index.remove(np.concatenate([gone, [10**9 + 1]])) == count
    assert index.remove(gone) == 0
    assert len(index) == SIZE - count
    np.testing.assert_array_equal(np.sort(index.ids()), np.sort(kept))
    expected = ExactIndex(DIM)
    expected.add(index.reconstruct(kept), kept)
    result = index.search(QUERIES, 16)
    assert not np.isin(result.ids, gone).any()
    assert (result.ids >= 0).all()
    assert measure_recall(index, QUERIES, oracle=expected) >= 0.95
    with pytest.raises(ValueError, match="is not in the index"):
        index.reconstruct(gone[:1])


def test_an_id_can_move_to_another_vector(index: VectorIndex) -> None:
    """As the key of a node does when it learns: removed and added again, many times over."""
    moved = IDS[:40]
    for round_ in range(10):
        assert index.remove(moved) == 40
        index.add(np.roll(VECTORS[:40], round_, axis=0), moved)
    assert len(index) == SIZE
    nearest = index.search(np.roll(VECTORS[:40], 9, axis=0), 8).ids
    atol = {"ivf_sq8": 0.02, "ivf_pq": 0.3}.get(index.tier, 1e-3)
    np.testing.assert_allclose(index.reconstruct(moved), np.roll(VECTORS[:40], 9, axis=0), atol=atol)
    assert np.mean([i in row for i, row in zip(moved, nearest, strict=True)]) >= (
        0.7 if index.tier == "ivf_pq" else 1.0
    )


def test_lists_multiplied_as_a_whole_find_what_a_scan_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled("ivf_fp16")
    index.remove(IDS[5:9])
    queries = unit(np.concatenate([QUERIES, clustered(8, 500)]))
    whole = index.search(queries, 16)
    monkeypatch.setattr("valuegraph.faiss_host._VISITORS", np.inf)
    scan = index.search(queries, 16)
    np.testing.assert_allclose(whole.similarity, scan.similarity, atol=2e-6)
    assert (whole.ids == scan.ids).mean() > 0.999
    assert not np.isin(whole.ids, IDS[5:9]).any()


@pytest.mark.parametrize("tier", ["exact", "flat", "flat_fp16", "ivf_fp16", "ivf_sq8"])
@pytest.mark.parametrize("batch", [2, 500])
def test_two_queries_in_one_visit_find_what_two_searches_find(tier: str, batch: int) -> None:
    index = filled(tier)
    index.remove(IDS[5:9])
    queries = unit(clustered(8, batch))
    more = 0.2 * unit(clustered(9, batch))
    if tier == "ivf_fp16":
        index._host.nprobe = index._host.nlist  # which lists are visited is not the question
    for found, asked in zip(search_both(index, queries, more, 16), (queries + more, queries), strict=True):
        expected = index.search(asked, 16)
        np.testing.assert_allclose(found.similarity, expected.similarity, atol=2e-6)
        assert (found.ids == expected.ids).mean() > 0.999
        assert not np.isin(found.ids, IDS[5:9]).any()


@pytest.mark.parametrize("batch", [1, 300])
def test_a_part_of_a_vector_is_found_beside_the_whole(batch: int) -> None:
    whole = filled("ivf_fp16")
    half = np.array([OF_ID[i] for i in IDS[40 : 40 + batch].tolist()])
    part = np.where(np.arange(DIM) < DIM // 4, half, 0.0).astype(np.float32)
    own = (part * half).sum(
        axis=1
    ) - 2e-3  # of the vector that it is a part of, which lies where that is near
    whole._host.nprobe = 1
    alone = whole.search(part, 1).similarity[:, 0]
    beside = search_beside(whole, part, half, 1).similarity[:, 0]
    assert (beside >= np.maximum(alone, own)).all()
    one = np.concatenate(
        [search_beside(whole, part[i : i + 1], half[i : i + 1], 1).ids for i in range(batch)]
    )
    assert (one == search_beside(whole, part, half, 1).ids).mean() > 0.99
    assert batch == 1 or (alone < own).any()  # control
    ids = search_beside(whole, part, part, 16).ids  # named twice, visited once
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.parametrize("tier", ["flat", "flat_fp16", "ivf_fp16", "ivf_sq8", "ivf_pq"])
@pytest.mark.parametrize("batch", [1, 60])
def test_a_width_that_scans_do_not_like_is_nobodys_business(tier: str, batch: int) -> None:
    odd = unit(VECTORS[:, :13])
    index, exact = make_index(13, tier=tier, device="cpu"), ExactIndex(13)
    for each in (index, exact):
        each.add(odd, np.arange(SIZE))
    found, expected = (each.search(odd[:batch], 5) for each in (index, exact))
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=0.2 if tier == "ivf_pq" else 0.03)
    assert index.reconstruct([3, 1]).shape == (2, 13)
    again = index_from_bytes(index.to_bytes(), device="cpu")
    np.testing.assert_array_equal(again.search(odd[:batch], 5).ids, found.ids)


def test_sampled_recall_sees_what_a_search_misses() -> None:
    index = make_index(DIM, tier="ivf_fp16", device="cpu")
    index.add(np.array([OF_ID[i] for i in IDS.tolist()]), IDS)
    assert sampled_recall(index) == sampled_recall(index) >= 0.9
    index._host.nprobe = 1
    assert sampled_recall(index) < 0.9
    assert sampled_recall(make_index(DIM, device="cpu")) == 1.0


def test_a_rebuild_is_due_when_another_tier_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index(DIM, device="cpu")
    assert isinstance(index, FaissIndex)
    index.add(np.array([OF_ID[i] for i in IDS.tolist()]), IDS)
    assert not index.due
    monkeypatch.setattr("valuegraph.tiers._CPU_LIMITS", ((100, "flat"), (10**9, "ivf_fp16")))
    assert index.due
    assert index.promote()
    assert index.tier == "ivf_fp16"
    assert not index.due


@pytest.mark.parametrize("tier", ["flat", "flat_fp16", "ivf_fp16"])
def test_any_history_leaves_the_same_index(tier: str) -> None:
    """Random batches of additions and removals, and a rebuild in between, against the oracle."""
    rng, index, oracle = np.random.default_rng(5), make_index(DIM, tier=tier, device="cpu"), ExactIndex(DIM)
    for step in range(40):
        known = oracle.ids()
        fresh = np.setdiff1d(rng.choice(IDS, 300), known)
        vectors = np.array([OF_ID[i] for i in fresh.tolist()])
        for target in (index, oracle):
            target.add(vectors, fresh)
        gone = rng.choice(oracle.ids(), int(rng.integers(0, 160)), replace=False)
        assert index.remove(gone) == oracle.remove(gone) == len(gone)
        if step == 25:
            promote(index, "ivf_sq8" if tier == "ivf_fp16" else "flat_fp16")
            promote(index, tier)
        np.testing.assert_array_equal(np.sort(index.ids()), np.sort(oracle.ids()))
    ids = oracle.ids()
    np.testing.assert_allclose(index.reconstruct(ids), oracle.reconstruct(ids), atol=1e-2)
    assert measure_recall(index, QUERIES, oracle=oracle) >= 0.9
    assert index.trained


BAD = [
    (VECTORS[:2, :-1], [1, 2], "shape"),
    (VECTORS[:2], [1], "2 vectors, but 1 ids"),
    (VECTORS[:2], [1, 1], "given twice"),
    (VECTORS[:2], [1, -1], "at least 0"),
    (VECTORS[:2], [1.0, 2.0], "whole numbers"),
    (VECTORS[:2], [1, int(IDS[5])], "in the index already"),
    (VECTORS[:3] * [[1.0], [np.nan], [1.0]], [1, 2, 3], "row 1"),
    (VECTORS[:2] * np.inf, [1, 2], "row 0"),
]


@pytest.mark.parametrize(("vectors", "ids", "message"), BAD)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_additions_change_nothing(
    index: VectorIndex, vectors: np.ndarray, ids: list[int], message: str
) -> None:
    before = index.to_bytes()
    with pytest.raises(ValueError, match=message):
        index.add(vectors, ids)
    assert index.to_bytes() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(QUERIES[:, 1:], 3), "shape"),
        (lambda index: index.search(QUERIES, 0), "k must be"),
        (lambda index: index.search(np.full((1, DIM), np.nan), 3), "row 0"),
        (lambda index: index.reconstruct([1]), "id 1 is not in the index"),
        (lambda index: index.remove([[1]]), "one dimension"),
    ],
)
def test_bad_questions_are_refused(index: VectorIndex, call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(index)


@pytest.mark.parametrize("spread", [1, 50_000, 2**50])
def test_labels_of_ids_are_those_of_a_dict(spread: int) -> None:
    rng, labels, expected = np.random.default_rng(0), LabelOf(), {}
    for start in range(0, 600, 60):
        ids = np.unique(rng.integers(0, 500 * spread, 60))
        ids = ids[labels.find(ids) < 0]
        labels.put(ids, np.arange(start, start + len(ids)))
        expected |= dict(zip(ids.tolist(), range(start, start + len(ids)), strict=True))
        gone = rng.permutation([*expected, 501 * spread])[:20]
        assert sorted(labels.pop(gone)) == sorted(expected.pop(i) for i in gone.tolist() if i in expected)
        asked = np.array([*expected, *gone.tolist(), 10**18])
        assert labels.find(asked).tolist() == [expected.get(i, -1) for i in asked.tolist()]
        assert len(labels) == len(expected)


def test_dense_ids_take_few_bytes_and_scattered_ones_more() -> None:
    ids, few, many = np.arange(10_000), LabelOf(), LabelOf()
    few.put(ids, ids)
    many.put(10**6 * ids, ids)
    assert few.nbytes <= 16 * len(ids)
    assert many.nbytes > 64 * len(ids)  # control


# --- bytes -------------------------------------------------------------------------------------------------


def test_bytes_give_back_the_same_index(index: VectorIndex) -> None:
    """Bit for bit, tombstones included, and it goes on working."""
    index.remove(IDS[100:150])
    index.add(VECTORS[100:110], IDS[100:110])
    again = index_from_bytes(index.to_bytes(), device="cpu")
    assert (again.tier, again.dim, len(again)) == (index.tier, DIM, SIZE - 40)
    for queries in (QUERIES, QUERIES[:1]):
        for mine, its in zip(again.search(queries, 16), index.search(queries, 16), strict=True):
            np.testing.assert_array_equal(mine, its)
    for either in (index, again):
        either.remove(IDS[150:700])
        either.add(VECTORS[110:140], IDS[110:140])
    np.testing.assert_array_equal(again.search(QUERIES, 16).ids, index.search(QUERIES, 16).ids)


@pytest.mark.parametrize("tier", ["exact", "flat", "ivf_fp16"])
def test_what_is_no_index_is_refused(tier: str, bytes_of: Callable[[str], bytes]) -> None:
    data = bytes_of(tier)
    for broken in (
        b"",
        b"PK\x03\x04" * 20,
        data[:30],
        data[:200],
        data[:-100],
        data[:16] + b"\x09" + data[17:],
    ):
        with pytest.raises(ValueError, match="vector index"):
            index_from_bytes(broken, device="cpu")


def test_the_same_vectors_and_seed_build_the_same_index() -> None:
    one, two = (filled("ivf_fp16", 3_000).search(QUERIES, 16) for _ in range(2))
    for mine, its in zip(one, two, strict=True):
        np.testing.assert_array_equal(mine, its)


# --- tiers -------------------------------------------------------------------------------------------------


def test_tiers_follow_size_and_hardware() -> None:
    sizes = [0, 50_000, 50_001, 5_000_001, 10**9]
    assert [tier_for(n) for n in sizes] == ["flat", "flat", "ivf_fp16", "ivf_sq8", "ivf_pq"]
    assert [tier_for(n, "cuda") for n in sizes] == ["flat", "flat", "flat", "ivf_fp16", "ivf_sq8"]
    assert make_index(DIM, device="cpu").tier == "flat"
    assert make_index(DIM, device="cpu", expected_size=60_000).tier == "ivf_fp16"


def test_an_inverted_file_is_flat_until_there_is_enough_to_train_on() -> None:
    index, enough = make_index(DIM, tier="ivf_fp16", device="cpu"), TRAIN_FROM["ivf_fp16"]
    index.add(VECTORS[: enough - 1], IDS[: enough - 1])
    assert not index.trained
    index.add(VECTORS[enough - 1 : enough], IDS[enough - 1 : enough])
    assert index.trained
    np.testing.assert_array_equal(index.ids(), IDS[:enough])


def test_promotion_happens_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled("flat", 3_000)
    assert not index.promote()
    monkeypatch.setattr("valuegraph.tiers._CPU_LIMITS", ((2_500, "flat"), (10**6, "ivf_fp16")))
    before = index.search(QUERIES, 16)
    assert index.promote()
    assert (index.tier, index.trained, len(index)) == ("ivf_fp16", True, 3_000)
    assert not index.promote()
    np.testing.assert_allclose(index.search(QUERIES, 16).similarity[:, 0], before.similarity[:, 0], atol=1e-3)
    lists = index._host.nlist
    index.add(VECTORS[3_000:], IDS[3_000:])  # three times what it was built for: still good
    assert not index.promote()
    more = clustered(9, 2_000)
    index.add(more, np.arange(2_000) + 10**9)
    assert index.promote()  # outgrown
    assert index._host.nlist > lists
    assert isinstance(promote(filled("exact", 100)), FaissIndex)


def test_unknown_tiers_and_devices_are_refused() -> None:
    for arguments in ({"tier": "hnsw"}, {"device": "tpu"}, {"tier": "flat", "device": "gpu"}):
        with pytest.raises(ValueError, match="must be"):
            make_index(DIM, **arguments)
    with pytest.raises(ValueError, match="dim must be"):
        make_index(0)
    if not gpu_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            make_index(DIM, device="cuda")


# --- threads -----------------------------------------------------------------------------------------------


def in_threads(*jobs: Callable[[], None]) -> None:
    """Run jobs side by side; whatever one raises, the test raises."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("tier", ["exact", "flat", "flat_fp16", "ivf_fp16"])
def test_a_search_sees_whole_batches(tier: str) -> None:
    """Twelve equal vectors come in one batch, and leave in one: a search sees all of them or none."""
    index = filled(tier, 2_500)
    seen: set[int] = set()
    probe = unit(np.full(DIM, -1.0))
    index.remove(index.search(probe, 50).ids[0])
    done = threading.Event()

    def write() -> None:
        try:
            for _ in range(60):
                index.add(np.tile(probe, (12, 1)), np.arange(12) + 10**9)
                index.remove(np.arange(12) + 10**9)
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            result = index.search(np.stack([probe] * 4), 13)
            for row in result.ids:
                seen.add(int((row >= 10**9).sum()))

    in_threads(write, read, read)
    assert seen <= {0, 12}
    assert len(index) == 2_450


def test_a_rebuild_loses_nothing_that_happens_meanwhile() -> None:
    index, oracle = filled("flat", 4_000), filled("exact", 4_000)
    done = threading.Event()

    def rebuild() -> None:
        try:
            for tier in ("ivf_fp16", "flat", "ivf_sq8", "flat"):
                index.promote(tier)
        finally:
            done.set()

    def change() -> None:
        place = 4_000
        while not done.is_set() and place < SIZE - 20:
            for target in (index, oracle):
                target.add(VECTORS[place : place + 20], IDS[place : place + 20])
                target.remove(IDS[place - 3_000 : place - 2_985])
            place += 20

    def read() -> None:
        while not done.is_set():
            assert (index.search(QUERIES[:4], 8).ids >= 0).all()

    in_threads(rebuild, change, read)
    np.testing.assert_array_equal(np.sort(index.ids()), np.sort(oracle.ids()))
    assert len(oracle) > 4_000
    assert measure_recall(index, QUERIES, oracle=oracle) >= 0.9


def test_a_waiting_writer_goes_before_new_readers_and_is_alone() -> None:
    lock, order, inside = ReadWriteLock(), [], []
    reading, waiting = threading.Event(), threading.Event()

    def first_reader() -> None:
        with lock.read:
            reading.set()
            waiting.wait(5)
            while not lock._writers_waiting:
                pass
            order.append("first reader")

    def writer() -> None:
        reading.wait(5)
        waiting.set()
        with lock.write:
            inside.append(lock._readers)
            order.append("writer")

    def late_reader() -> None:
        reading.wait(5)
        while not (lock._writers_waiting or lock._writing or "writer" in order):
            pass
        with lock.read:
            order.append("late reader")

    in_threads(first_reader, writer, late_reader)
    assert order == ["first reader", "writer", "late reader"]
    assert inside == [0]


# --- GPU ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> None:
    if not gpu_available():
        pytest.skip("FAISS sees no GPU")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("tier", ["flat", "flat_fp16", "ivf_fp16", "ivf_sq8"])
def test_the_gpu_is_a_copy_that_follows_the_host(tier: str, bytes_of: Callable[[str], bytes]) -> None:
    host = index_from_bytes(bytes_of(tier), device="cpu")
    copy = index_from_bytes(bytes_of(tier), device="cuda")
    for change in (
        lambda index: None,
        lambda index: index.remove(IDS[:100]),
        lambda index: index.add(VECTORS[:50], IDS[:50]),
        lambda index: index.remove(IDS[100:600]),
    ):
        for index in (host, copy):
            change(index)
        one, two = host.search(QUERIES, 16), copy.search(QUERIES, 16)
        np.testing.assert_allclose(two.similarity, one.similarity, atol=3e-3)
        assert measure_recall(copy, QUERIES) >= 0.95


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_tensors_on_the_gpu_stay_there(bytes_of: Callable[[str], bytes]) -> None:
    import torch

    index = index_from_bytes(bytes_of("flat"), device="cuda")
    index.remove(IDS[:20])
    expected = index.search(QUERIES, 16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        queries = torch.from_numpy(QUERIES).cuda(non_blocking=True)
        similarity, ids = index.search_tensor(queries, 16)
    stream.synchronize()
    assert similarity.is_cuda
    assert ids.is_cuda
    np.testing.assert_allclose(similarity.cpu().numpy(), expected.similarity, atol=1e-5)
    np.testing.assert_array_equal(ids.cpu().numpy(), expected.ids)


def test_tensors_work_without_a_gpu_too() -> None:
    import torch

    index = filled("flat", 200)
    similarity, ids = index.search_tensor(torch.from_numpy(QUERIES), 4)
    expected = index.search(QUERIES, 4)
    np.testing.assert_array_equal(ids.numpy(), expected.ids)
    np.testing.assert_array_equal(similarity.numpy(), expected.similarity)
