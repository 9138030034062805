"""The value graph on tiny chains: closed forms, stitching, writing by worth, and kernel reads."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valuegraph.config import FitConfig
from valuegraph.credit import discounted_credit
from valuegraph.graph import Memory, Neighbours, ValueGraph, Visit
from valuegraph.graph_state import graph_from_state, graph_state

DIM = 12
STATES = np.eye(DIM, dtype=np.float32)  # no two alike
GOAL = np.eye(DIM, dtype=np.float32)[-1]
OTHER_GOAL = np.eye(DIM, dtype=np.float32)[-2]


def graph_of(*, z_dim: int = 0, **config: object) -> ValueGraph:
    return ValueGraph(DIM, z_dim, FitConfig(device="cpu", **config))  # type: ignore[arg-type]


def visit(
    graph: ValueGraph,
    states: list[int] | np.ndarray,
    outcome: float,
    *,
    goal: np.ndarray | None = GOAL,
    name: str | None = "goal",
    terminated: bool = True,
    z: np.ndarray | None = None,
) -> Visit:
    """An episode through numbered states, or through given embeddings."""
    phi = STATES[states] if isinstance(states, list) else states.astype(np.float32)
    goal = np.zeros(DIM, np.float32) if goal is None else goal
    keys = graph.keys(z, phi, np.broadcast_to(goal, phi.shape))
    texts = [str(s) for s in states] if isinstance(states, list) else ["near"] * len(phi)
    memories = [Memory(key, text) for key, text in zip(keys, texts, strict=True)]
    credit = discounted_credit(outcome, len(phi), graph.config.gamma)
    return Visit(goal, name, memories, credit, outcome, terminated)


def written(routes: list[tuple[list[int], float]], **config: object) -> ValueGraph:
    graph = graph_of(**config)
    for states, outcome in routes:
        graph.write([visit(graph, states, outcome)])
    return graph


def value_of(graph: ValueGraph, state: int, goal: np.ndarray | None = GOAL) -> float:
    """h of the node that a state falls in."""
    near = graph.neighbours(graph.keys(None, STATES[[state]], None if goal is None else goal[None]))
    return float(graph.values[near.nodes[0, 0]])


def counts(graph: ValueGraph) -> np.ndarray:
    """(n, n) edge weights as a matrix."""
    edges = graph.edges.edges()
    dense = np.zeros((len(graph), len(graph)))
    dense[edges.tails, edges.heads] = edges.amounts
    return dense


def linear_solve(graph: ValueGraph) -> np.ndarray:
    """h = (I - gamma P)^-1 r from the graph's own counts."""
    weights, ended, config = counts(graph), graph.column("ended"), graph.config
    mass = weights.sum(axis=1) + ended + config.unseen
    mass[mass == 0.0] = 1.0
    moves = weights / mass[:, None]
    return np.linalg.solve(np.eye(len(graph)) - config.gamma * moves, graph.column("won") / mass)


routes = st.lists(
    st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.sampled_from((0.0, 0.5, 1.0))),
    min_size=1,
    max_size=6,
)


# --- values ---


@given(routes, st.sampled_from((0.5, 0.9, 0.97)), st.sampled_from((0.0, 0.1, 1.0)))
@settings(deadline=None, max_examples=50)
def test_first_hit_values_are_the_linear_solve(
    route: list[tuple[list[int], float]], gamma: float, unseen: float
) -> None:
    graph = written(route, gamma=gamma, unseen=unseen)
    np.testing.assert_allclose(graph.values, linear_solve(graph), atol=2e-4)
    assert ((graph.values >= 0.0) & (graph.values <= 1.0)).all()


def test_a_chain_in_closed_form() -> None:
    """Every node keeps 1 of 1 + kappa0 of its mass: h_t = (gamma / (1 + kappa0))^(T-1-t) / (1 + kappa0)."""
    graph = written([([0, 1, 2, 3], 1.0)], gamma=0.9, unseen=0.25)
    expected = [0.8 * (0.9 * 0.8) ** (3 - t) for t in range(4)]
    np.testing.assert_allclose([value_of(graph, t) for t in range(4)], expected, atol=1e-5)


def test_passing_a_place_often_does_not_add_up() -> None:
    once = written([([0, 1, 2], 1.0)], unseen=0.0, gamma=1.0)
    often = written([([0, 1, 0, 1, 0, 1, 0, 1, 2], 1.0)], unseen=0.0, gamma=1.0)
    for graph in (once, often):
        np.testing.assert_allclose(graph.values, 1.0, atol=1e-3)
    assert often.column("credit").max() > 3.0  # control: the sum of what each visit was worth


def best_way(graph: ValueGraph) -> np.ndarray:
    """Brute force: the most valuable end over every path without a loop, gamma per step."""
    ended, heads = graph.column("ended"), counts(graph) > 0.0
    share = np.divide(graph.column("won"), ended, out=np.zeros(len(graph)), where=ended > 0)

    def best(node: int, seen: frozenset[int]) -> float:
        onward = [j for j in np.flatnonzero(heads[node]).tolist() if j not in seen]
        ways = [graph.config.gamma * best(j, seen | {j}) for j in onward]
        return max([float(share[node]), *ways])

    return np.array([best(i, frozenset({i})) for i in range(len(graph))])


@given(routes, st.sampled_from((0.5, 0.9)))
@settings(deadline=None, max_examples=50)
def test_max_product_values_are_the_best_way(route: list[tuple[list[int], float]], gamma: float) -> None:
    graph = written(route, gamma=gamma, propagation="max_product")
    np.testing.assert_allclose(graph.values, best_way(graph), atol=1e-9)


histories = st.lists(routes, min_size=2, max_size=6)


def grown(history: list[list[tuple[list[int], float]]], many: int, **config: object) -> ValueGraph:
    """A graph written in several pieces; with many=0 values are always repaired, never swept."""
    graph = graph_of(**config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("valuegraph.values._MANY", many)
        for piece in history:
            graph.write([visit(graph, states, outcome) for states, outcome in piece])
    return graph


@given(histories, st.sampled_from((0.5, 0.9, 0.97)), st.sampled_from((0.0, 0.1)), st.sampled_from((0.0, 0.3)))
@settings(deadline=None, max_examples=60)
def test_repaired_values_are_those_computed_from_nothing(
    history: list[list[tuple[list[int], float]]], gamma: float, unseen: float, forgetting: float
) -> None:
    repaired = grown(history, 0, gamma=gamma, unseen=unseen, forgetting=forgetting, trace=0.5)
    np.testing.assert_allclose(repaired.values, linear_solve(repaired), atol=2e-6 / (1.0 - gamma) + 1e-5)
    assert ((repaired.values >= 0.0) & (repaired.values <= 1.0)).all()
    kept = repaired.values.copy()
    repaired.propagate()
    np.testing.assert_allclose(kept, repaired.values, atol=2e-6 / (1.0 - gamma))


@given(histories, st.sampled_from((0.5, 0.9)))
@settings(deadline=None, max_examples=60)
def test_repaired_best_ways_are_those_computed_from_nothing(
    history: list[list[tuple[list[int], float]]], gamma: float
) -> None:
    repaired = grown(history, 0, gamma=gamma, propagation="max_product")
    np.testing.assert_allclose(repaired.values, best_way(repaired), atol=1e-9)


def test_control_without_a_repair_values_grow_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = written([([0, 1, 2], 1.0)])
    monkeypatch.setattr("valuegraph.graph.repair", lambda *args: None)
    graph.write([visit(graph, [0, 1, 3], 0.0)] * 3)
    assert abs(graph.values[0] - linear_solve(graph)[0]) > 0.1


@given(routes)
@settings(deadline=None, max_examples=50)
def test_without_trace_surprise_and_forgetting_edges_count_transitions(
    route: list[tuple[list[int], float]],
) -> None:
    graph = written(route, trace=0.0, surprise=0.0, forgetting=0.0, merge=0.999)
    expected = Counter(pair for states, _ in route for pair in pairwise(map(str, states)))
    edges = graph.edges.edges()
    found: Counter = Counter()
    for i, j, weight in zip(edges.tails, edges.heads, edges.amounts, strict=True):
        found[graph.texts[i], graph.texts[j]] += float(weight)
    assert found == expected


@pytest.mark.parametrize("rule", [{"trace": 0.5}, {"surprise": 1.0}, {"forgetting": 0.3}])
def test_control_with_any_of_them_edges_are_no_counts(rule: dict[str, float]) -> None:
    route = [([0, 1, 2], 1.0), ([0, 1, 2], 1.0), ([0, 1, 3], 0.0)]
    assert not np.array_equal(counts(written(route, **rule)), counts(written(route)))


def test_stitching_credits_a_step_seen_only_in_failures() -> None:
    """0 -> 1 was only ever tried in an episode that failed; 1 -> 2 leads to success elsewhere."""
    failures = [([0, 1, 5], 0.0)] * 3
    graph = written([*failures, ([3, 1, 2], 1.0), ([4, 1, 2], 1.0)])
    assert value_of(graph, 0) > 0.2
    # Control: its own episodes know nothing good of it, and without the successes there is nothing to stitch.
    node = graph.texts.index("0")
    assert graph.column("credit")[node] == 0.0 == graph.column("successes")[node]
    assert value_of(written(failures), 0) == 0.0


def test_an_episode_cut_off_in_the_middle_ends_nowhere() -> None:
    """0 -> 1 was cut at 1: its value there is what is known to come after 1, not a failure there."""
    graph = graph_of(unseen=0.0, gamma=1.0)
    cut, ended = graph_of(unseen=0.0, gamma=1.0), graph_of(unseen=0.0, gamma=1.0)
    for graph, terminated in ((cut, False), (ended, True)):
        graph.write([visit(graph, [0, 1, 2], 1.0), visit(graph, [0, 1], 0.0, terminated=terminated)])
    assert value_of(cut, 0) == pytest.approx(1.0, abs=1e-3)
    assert value_of(ended, 0) == pytest.approx(0.5, abs=1e-3)


def test_values_follow_what_is_written_later() -> None:
    graph = written([([0, 1], 0.0)])
    assert value_of(graph, 0) == 0.0
    graph.write([visit(graph, [1, 2], 1.0)])
    known = value_of(graph, 0)
    assert known > 0.0
    graph.write([visit(graph, [1, 3], 0.0)] * 4)
    assert 0.0 < value_of(graph, 0) < known


def test_the_order_of_writing_does_not_change_what_is_known_in_the_end() -> None:
    route = [([0, 1, 2], 1.0), ([0, 3], 0.0), ([3, 1, 4], 0.0), ([5, 3, 2], 1.0)]
    forward, backward = written(route), written(route[::-1])
    for state in range(6):
        assert value_of(forward, state) == pytest.approx(value_of(backward, state), abs=1e-4)


# --- writing by worth ---


def turned(graph: ValueGraph, state: int, similarity: float, goal: np.ndarray = GOAL) -> np.ndarray:
    """(1, d) a step whose key has this similarity to that of a state, whatever shares the parts have."""
    away = STATES[DIM - 3]

    def at(cosine: float) -> np.ndarray:
        return (cosine * STATES[state] + np.sqrt(1.0 - cosine**2) * away).astype(np.float32)[None]

    def likeness(cosine: float) -> float:
        keys = [graph.keys(None, phi, goal[None])[0] for phi in (STATES[[state]], at(cosine))]
        return float(keys[0] @ keys[1])

    low, high = 0.0, 1.0  # likeness grows with the cosine
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if likeness(middle) < similarity else (low, middle)
    return at(high)


def test_the_same_step_again_strengthens_its_node() -> None:
    graph = written([([0, 1], 1.0)] * 5)
    assert len(graph) == 2
    assert graph.column("visits").tolist() == [5.0, 5.0]
    assert len(graph.edges) == 1
    assert graph.episodes == 5
    assert len(graph.paths) == 1
    assert graph.paths[0].count == 5


@pytest.mark.parametrize("similarity", [0.9995, 0.995])
def test_a_near_duplicate_of_equal_worth_strengthens_its_node(similarity: float) -> None:
    graph = written([([0], 1.0)], unseen=0.0)
    graph.write([visit(graph, turned(graph, 0, similarity), 1.0)])
    assert len(graph) == 1
    assert graph.column("visits").tolist() == [2.0]


def test_a_near_duplicate_worth_something_else_is_stored() -> None:
    graph = written([([0], 1.0)], unseen=0.0)
    graph.write([visit(graph, turned(graph, 0, 0.995), 0.0)])
    assert len(graph) == 2
    assert graph.column("visits").tolist() == [1.0, 1.0]
    assert graph.values.tolist() == pytest.approx([1.0, 0.0])


def test_what_cannot_be_told_apart_is_one_node_whatever_it_is_worth() -> None:
    graph = written([([0], 1.0), ([0], 0.0)], unseen=0.0)
    assert len(graph) == 1
    assert graph.values.tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_something_new_is_stored_whatever_it_is_worth(outcome: float) -> None:
    graph = written([([0], 1.0)], unseen=0.0)
    graph.write([visit(graph, turned(graph, 0, 0.95), outcome)])
    assert len(graph) == 2


def test_a_lower_merge_threshold_keeps_fewer_nodes() -> None:
    steps = STATES[[0, 1]] + 0.1 * np.random.default_rng(0).standard_normal((40, 1, DIM))
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    sizes = []
    for merge in (0.9, 0.9999):
        graph = graph_of(merge=merge)
        graph.write([visit(graph, episode, 1.0) for episode in steps])
        sizes.append(len(graph))
    assert sizes[0] < sizes[1]


def test_one_text_for_two_goals_is_two_memories() -> None:
    graph = graph_of()
    graph.write([visit(graph, [0, 1], 1.0), visit(graph, [0, 1], 0.0, goal=OTHER_GOAL, name="other")])
    assert len(graph) == 4
    assert value_of(graph, 0) > 0.5
    assert value_of(graph, 0, OTHER_GOAL) == 0.0
    assert graph.goal_of.tolist() == [0, 0, 1, 1]
    assert (graph.goals.tried, graph.goals.reached) == ([1.0, 1.0], [1.0, 0.0])


def test_successful_ways_are_remembered_up_to_a_number() -> None:
    graph = graph_of(paths_per_goal=2)
    graph.write([visit(graph, [0, s], 1.0) for s in range(1, 6)])
    graph.write([visit(graph, [0, 6], 0.4), visit(graph, [0, 1], 1.0)])
    graph.write([visit(graph, [7], 1.0, goal=None, name=None)])
    assert [(path.goal, path.count) for path in graph.paths] == [(0, 2), (0, 1), (1, 1)]
    assert [[graph.texts[n] for n in path.nodes] for path in graph.paths] == [["0", "1"], ["0", "2"], ["7"]]


# --- reading ---


def test_a_read_on_a_memory_is_its_value_and_far_from_all_it_is_zero() -> None:
    graph = written([([0, 1, 2], 1.0)] * 20)
    goals = np.repeat(GOAL[None], 3, axis=0)
    near = graph.neighbours(graph.keys(None, STATES[[0, 1, 2]], goals))
    np.testing.assert_allclose(graph.read(near), [value_of(graph, s) for s in range(3)], atol=1e-3)
    np.testing.assert_allclose(near.support, 1.0, atol=1e-4)
    far = graph.neighbours(graph.keys(None, STATES[[7, 8]], goals[:2]))
    assert graph.read(far).max() < 1e-6
    assert far.support.max() < 1e-6
    wrong_goal = graph.neighbours(graph.keys(None, STATES[[2]], OTHER_GOAL[None]))
    assert graph.read(wrong_goal).max() < 1e-6
    # Control: a normalised read falls back to the mean of the memory, however far away.
    normalised = (far.kernel * graph.values[far.nodes]).sum(axis=1) / far.kernel.sum(axis=1)
    assert normalised.min() > 0.5


def test_a_query_weighs_only_the_parts_it_has() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 5)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    graph = graph_of(z_dim=5)
    graph.write([visit(graph, [0, 1], 1.0, z=z)])
    for query in (
        graph.keys(None, STATES[[1]], GOAL[None]),
        graph.keys(None, STATES[[1]], None),
        graph.keys(z[[1]], None, None),
        graph.keys(z[[1]], STATES[[1]], GOAL[None]),
    ):
        near = graph.neighbours(query)
        assert near.nodes[0, 0] == 1
        assert near.kernel[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert graph.neighbours(graph.keys(z[[0]], STATES[[1]], GOAL[None])).kernel.max() < 0.1


def test_no_goal_is_a_goal_of_its_own() -> None:
    graph = graph_of()
    graph.write([visit(graph, [0], 1.0, goal=None, name=None)])
    nothing = np.zeros((1, DIM), np.float32)
    assert graph.read(graph.neighbours(graph.keys(None, STATES[[0]], nothing)))[0] > 0.5
    assert graph.read(graph.neighbours(graph.keys(None, STATES[[0]], GOAL[None])))[0] < 1e-3
    assert graph.goal_similarity(nothing[0]).tolist() == [1.0]
    assert graph.goal_similarity(GOAL).tolist() == [0.0]


def test_the_nearest_step_and_what_it_said() -> None:
    graph = written([([0, 1, 2], 1.0)])
    phi = (0.8 * STATES[[1]] + 0.6 * STATES[[7]]).astype(np.float32)
    assert graph.step_similarity(phi) == pytest.approx(0.8, abs=1e-5)
    np.testing.assert_allclose(graph.step_embeddings(np.array([2, 0, 2])), STATES[[2, 0, 2]], atol=1e-6)


def test_visits_count_where_a_state_falls_and_nowhere_else() -> None:
    graph = written([([0, 1], 1.0)] * 3 + [([0], 0.0)])
    goals = np.repeat(GOAL[None], 3, axis=0)
    assert graph.visits_near(graph.keys(None, STATES[[0, 1, 5]], goals)).tolist() == [4.0, 3.0, 0.0]


def test_iterative_retrieval_comes_to_rest_on_a_memory() -> None:
    graph = written([([0, 1], 1.0)] * 3)
    blurred = (0.97 * STATES[[1]] + np.sqrt(1 - 0.97**2) * STATES[[0]]).astype(np.float32)
    assert graph.settle(graph.neighbours(graph.keys(None, blurred, GOAL[None]))) == 1


def test_an_empty_memory_knows_nothing() -> None:
    graph = graph_of()
    graph.propagate()
    query = graph.keys(None, STATES[[0, 1]], None)
    near = graph.neighbours(query)
    assert isinstance(near, Neighbours)
    assert (near.nodes == -1).all()
    assert graph.read(near).tolist() == [0.0, 0.0] == near.support.tolist()
    assert graph.step_similarity(STATES[[0]]).tolist() == [-1.0]
    assert graph.visits_near(query).tolist() == [0.0, 0.0]
    assert graph.goal_similarity(GOAL).shape == (0,)


# --- landmarks ---


def test_a_landmark_is_worth_the_lift_of_success_it_brings() -> None:
    """0 is always there, 1 only in successes; 2 ends a success and nothing else."""
    graph = written([([0, 1, 2], 1.0)] * 4 + [([0, 3], 0.0)] * 4)
    (path,) = graph.paths
    weights = graph.landmark_weights(path)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights > 0.0).all()
    assert weights[0] < 0.1 * weights[1]
    assert weights[1] == pytest.approx(weights[2], rel=1e-3)
    # Control: without the failures nothing says that 0 is not needed.
    everything = written([([0, 1, 2], 1.0)] * 4)
    np.testing.assert_allclose(everything.landmark_weights(everything.paths[0]), 1 / 3, atol=1e-3)


def test_only_the_first_of_equal_landmarks_has_weight() -> None:
    graph = written([([0, 1, 0, 1, 2], 1.0)])
    weights = graph.landmark_weights(graph.paths[0])
    assert (weights > 0.0).tolist() == [True, True, False, False, True]
    assert weights.sum() == pytest.approx(1.0)


# --- to disk and back ---


@given(routes, routes)
@settings(deadline=None, max_examples=25)
def test_state_survives_and_grows_on_as_if_nothing_had_happened(
    before: list[tuple[list[int], float]], after: list[tuple[list[int], float]]
) -> None:
    graph = written(before, trace=0.5, surprise=0.5, forgetting=0.1)
    arrays, documents = graph_state(graph)
    again = graph_from_state(DIM, 0, graph.config, arrays, documents, graph.index.to_bytes(), device="cpu")
    for each in (graph, again):
        for states, outcome in after:
            each.write([visit(each, states, outcome)])
    assert again.texts == graph.texts
    assert again.paths == graph.paths
    assert again.goals.texts == graph.goals.texts
    left, right = graph_state(graph)[0], graph_state(again)[0]
    assert set(left) == set(right)
    for name in left:
        assert np.array_equal(left[name], right[name]), name
    assert again.index.to_bytes() == graph.index.to_bytes()


def test_what_older_versions_saved_is_read() -> None:
    """They kept fewer statistics, and no residuals."""
    graph = written([([0, 1, 2], 1.0), ([0, 3], 0.0)], trace=0.5)
    arrays, documents = graph_state(graph)
    older = {name: rows for name, rows in arrays.items() if name not in ("residual", "rested")}
    older["stats"] = arrays["stats"][:, :6]
    again = graph_from_state(DIM, 0, graph.config, older, documents, graph.index.to_bytes(), "cpu")
    assert again.texts == graph.texts
    for name, rows in graph_state(again)[0].items():
        if name != "residual":
            np.testing.assert_array_equal(rows, arrays[name], err_msg=name)
    for each in (graph, again):
        each.write([visit(each, [3, 1, 4], 1.0)])
    np.testing.assert_allclose(again.values, graph.values, atol=1e-5)


def test_merge_at_one_keeps_apart_all_that_differ_but_for_rounding() -> None:
    near = np.stack([STATES[0], STATES[0] + 0.05 * STATES[1], STATES[0]])
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    for merge, nodes in ((1.0, 2), (0.999, 1)):  # the second is the control
        graph = graph_of(merge=merge)
        graph.write([visit(graph, near, 1.0)])
        assert len(graph) == nodes
