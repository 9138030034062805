"""Values on a graph against linear algebra, brute force and each other; loops must not pay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valuegraph.adjacency import CSR, LinkedEdges
from valuegraph.propagation import (
    _jacobi,
    first_hit,
    max_product,
    raise_values,
    sweep_values,
    transition_probabilities,
)

seeds = st.integers(0, 2**32 - 1)
no_deadline = settings(deadline=None)  # the first example compiles


def csr(matrix: np.ndarray) -> CSR:
    rows, columns = np.nonzero(matrix)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    return CSR(indptr, columns, matrix[rows, columns])


def dense(graph: CSR) -> np.ndarray:
    matrix = np.zeros((graph.nodes, graph.nodes))
    np.add.at(matrix, (graph.sources, graph.indices), graph.weights)
    return matrix


def random_weights(seed: int, nodes: int = 0, density: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Edge weights and reward mass of a random graph with loops and dead ends."""
    rng = np.random.default_rng(seed)
    n = nodes or int(rng.integers(1, 30))
    weights = rng.integers(1, 9, (n, n)) * (rng.random((n, n)) < density)
    return weights.astype(np.float64), rng.integers(0, 5, n) * (rng.random(n) < 0.4) * 1.0


def chain(weights: np.ndarray, mass: np.ndarray, kappa0: float = 0.5) -> tuple[CSR, np.ndarray]:
    """P and r from counts: where the episode ended well counts as having left the node."""
    total = weights.sum(1) + mass + kappa0
    return transition_probabilities(csr(weights), kappa0, mass), mass / total


def walks(matrix: np.ndarray, source: np.ndarray, gamma: float) -> np.ndarray:
    """Largest product over every walk without a repeated node, by enumeration."""
    n = len(source)
    best = source.copy()
    for length in range(2, n + 1):
        for path in itertools.permutations(range(n), length):
            product = np.prod([gamma * matrix[i, j] for i, j in itertools.pairwise(path)])
            best[path[0]] = max(best[path[0]], product * source[path[-1]])
    return best


# --- transition probabilities ------------------------------------------------------------------------------


@no_deadline
@given(seeds, st.floats(0.0, 5.0))
def test_probabilities_are_the_shares_of_all_that_left(seed: int, kappa0: float) -> None:
    weights, mass = random_weights(seed)
    expected = weights / np.maximum(weights.sum(1) + mass + kappa0, 1e-300)[:, None]
    np.testing.assert_allclose(
        dense(transition_probabilities(csr(weights), kappa0, mass)), expected, rtol=1e-6
    )


def test_unseen_mass_goes_nowhere() -> None:
    weights = np.array([[0.0, 3.0], [0.0, 0.0]])
    assert transition_probabilities(csr(weights)).weights[0] == 1.0
    assert transition_probabilities(csr(weights), kappa0=1.0).weights[0] == 0.75


def test_an_edge_without_weight_leads_nowhere() -> None:
    faded = CSR([0, 1, 1], [1], [0.0])
    assert transition_probabilities(faded).weights.tolist() == [0.0]
    links, source = LinkedEdges.from_csr(faded), np.array([0.0, 1.0])
    values = np.zeros(2)
    assert raise_values(values, links, 1, source, 0.9) == 1
    assert values.tolist() == [0.0, 1.0]
    values, residual = np.zeros(2), np.zeros(2)
    assert sweep_values(values, residual, links, [0, 1], source, 0.9) == 1
    assert values.tolist() == [0.0, 1.0]


# --- first hit ---------------------------------------------------------------------------------------------


@no_deadline
@given(seeds, st.floats(0.0, 1.0))
def test_first_hit_solves_the_linear_system(seed: int, gamma: float) -> None:
    transitions, reward = chain(*random_weights(seed))
    solution = first_hit(transitions, reward, gamma, tol=1e-13)
    expected = np.linalg.solve(np.eye(transitions.nodes) - gamma * dense(transitions), reward)
    assert solution.converged
    np.testing.assert_allclose(solution.values, expected, atol=1e-9)
    assert solution.values.min() >= 0.0
    assert solution.values.max() <= 1.0


@no_deadline
@given(seeds, st.floats(0.0, 0.95), st.sampled_from([1e-1, 1e-2, 1e-4]))
def test_the_residual_bounds_the_error(seed: int, gamma: float, tol: float) -> None:
    transitions, reward = chain(*random_weights(seed))
    solution = first_hit(transitions, reward, gamma, tol=tol)
    exact = np.linalg.solve(np.eye(transitions.nodes) - gamma * dense(transitions), reward)
    rho = gamma * transitions.row_sums().max()
    assert solution.residual <= tol
    assert np.abs(solution.values - exact).max() <= rho / (1 - rho) * solution.residual + 1e-9


def test_first_hit_is_the_frequency_of_good_ends() -> None:
    """Simulated walks, discounted: an estimate that shares no line with the solver."""
    transitions, reward = chain(*random_weights(3, nodes=6, density=0.5))
    matrix, gamma, rng = dense(transitions), 0.9, np.random.default_rng(0)
    edges = np.concatenate([matrix, reward[:, None]], axis=1).cumsum(1)
    at, value, alive = np.zeros(40_000, int), np.zeros(40_000), np.ones(40_000, bool)
    for step in range(60):
        choice = (rng.random(len(at))[:, None] > edges[at]).sum(
            1
        )  # n: ended well, n + 1: left the known graph
        value[alive & (choice == 6)] = gamma**step
        alive &= choice < 6
        at = np.where(alive, choice, 0)
    standard_error = value.std() / np.sqrt(len(value))
    assert abs(first_hit(transitions, reward, gamma).values[0] - value.mean()) < 4 * standard_error


def test_revisits_do_not_accumulate() -> None:
    """Two nodes in a loop, one of which ends well now and then. Adding up visits, the control, passes one."""
    weights, mass = np.array([[0.0, 9.0], [9.0, 0.0]]), np.array([0.0, 1.0])
    transitions, reward = chain(weights, mass, kappa0=0.0)
    gamma = 0.99
    values = first_hit(transitions, reward, gamma, tol=1e-12).values
    assert values.max() <= 1.0
    worth = (mass > 0.0).astype(float)  # every visit of a good node counted in full
    naive = np.linalg.solve(np.eye(2) - gamma * dense(transitions), worth)
    assert naive.max() > 1.0


def test_without_discount_a_loop_that_always_ends_well_is_certain() -> None:
    transitions, reward = chain(np.array([[0.0, 9.0], [9.0, 0.0]]), np.array([0.0, 1.0]), kappa0=0.0)
    np.testing.assert_allclose(first_hit(transitions, reward, 1.0, tol=1e-14).values, 1.0, atol=1e-6)


def test_a_closed_loop_that_never_ends_is_worth_nothing() -> None:
    transitions = csr(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]))
    assert first_hit(transitions, [0.0, 0.0, 0.5], 1.0).values.tolist() == [0.0, 0.0, 0.5]


def test_duplicate_edges_that_sum_past_one_do_not_diverge() -> None:
    twice = CSR([0, 2, 3], [1, 1, 0], [1.0, 1.0, 1.0])
    solution = first_hit(twice, [0.0, 0.1], 0.99)
    assert solution.converged
    assert solution.values.max() <= 1.0
    itself = CSR([0, 2], [0, 0], [1.0, 1.0])
    assert first_hit(itself, [0.5], 1.0).values[0] <= 1.0


def test_a_warm_start_needs_fewer_sweeps() -> None:
    transitions, reward = chain(*random_weights(5, nodes=200, density=0.03), kappa0=0.01)
    cold = first_hit(transitions, reward, 0.99)
    warm = first_hit(transitions, reward, 0.99, initial=cold.values)
    assert warm.sweeps < cold.sweeps


def test_giving_up_is_reported() -> None:
    transitions, reward = chain(*random_weights(5, nodes=200, density=0.03), kappa0=0.01)
    solution = first_hit(transitions, reward, 0.99, tol=1e-12, max_sweeps=2)
    assert not solution.converged
    assert solution.residual > 1e-12


def test_stitching_across_episodes() -> None:
    """a -> b -> failure and c -> b -> success: a, seen in the failure alone, gets the credit of b."""
    weights = np.zeros((3, 3))
    weights[0, 1] = weights[2, 1] = 1.0
    transitions, reward = chain(weights, np.array([0.0, 1.0, 0.0]), kappa0=1.0)
    values = first_hit(transitions, reward, 0.9).values
    assert values[0] == pytest.approx(values[2]) == pytest.approx(0.9 * 0.5 * values[1])


# --- max product -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 6), st.floats(0.1, 1.0))
def test_max_product_is_the_best_of_all_paths(seed: int, nodes: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    graph = csr(rng.random((nodes, nodes)) * (rng.random((nodes, nodes)) < 0.6))
    source = rng.random(nodes) * (rng.random(nodes) < 0.5)
    solution = max_product(graph, source, gamma)
    np.testing.assert_allclose(solution.values, walks(dense(graph), source, gamma), rtol=1e-6)
    assert solution.converged


def test_unit_weights_count_the_steps() -> None:
    line = csr(np.eye(50, k=1))
    source = np.eye(50)[-1]
    np.testing.assert_allclose(
        max_product(line, source, 0.9).values, 0.9 ** np.arange(49, -1, -1), rtol=1e-12
    )


@pytest.mark.parametrize("order", ["as inserted", "against", "shuffled"])
def test_any_order_of_insertion_gives_the_exact_values(order: str) -> None:
    """A shuffled line of nodes gains about one node a sweep: best-first has to take over."""
    n = 2_000
    place = np.arange(n)
    if order != "as inserted":
        place = place[::-1].copy() if order == "against" else np.random.default_rng(0).permutation(n)
    follower = np.empty(n, int)
    follower[place[:-1]] = place[1:]
    last = place[-1]
    rows = np.delete(np.arange(n), last)
    graph = CSR(np.searchsorted(rows, np.arange(n + 1)), follower[rows], np.ones(n - 1))
    solution = max_product(graph, np.eye(n)[last], 0.999)
    np.testing.assert_allclose(solution.values[place], 0.999 ** np.arange(n - 1, -1, -1), rtol=1e-9)
    assert solution.sweeps <= 17


def test_a_loop_does_not_feed_on_itself() -> None:
    """Counts instead of probabilities are clamped; unclamped products, the control, pass one."""
    graph = csr(np.array([[0.0, 7.0], [7.0, 0.0]]))
    values = max_product(graph, [0.0, 0.5], 0.99).values
    assert values.max() <= 1.0
    assert 0.99 * 7.0 * 0.5 > 1.0


# --- repairs -----------------------------------------------------------------------------------------------


def grow(seed: int, nodes: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights and mass before and after some edges and good ends were added, and the nodes concerned."""
    weights, mass = random_weights(seed, nodes, density=0.05)
    rng = np.random.default_rng(seed + 1)
    new_weights, new_mass = weights.copy(), mass.copy()
    tails, heads, ends = rng.integers(0, nodes, 6), rng.integers(0, nodes, 6), rng.integers(0, nodes, 2)
    np.add.at(new_weights, (tails, heads), 2.0)
    np.add.at(new_mass, ends, 1.0)
    return weights, mass, new_weights, new_mass, np.concatenate([tails, ends])


def only(rows: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Those of some nodes; what nobody reads of the others may be anything."""
    return np.where(np.isin(np.arange(len(rows)), nodes), rows, np.nan)


@no_deadline
@given(seeds, st.floats(0.1, 0.99))
def test_prioritized_sweeping_repairs_first_hits(seed: int, gamma: float) -> None:
    weights, mass, new_weights, new_mass, dirty = grow(seed)
    values = first_hit(*chain(weights, mass), gamma, tol=1e-12).values
    transitions, reward = chain(new_weights, new_mass)
    exact = first_hit(transitions, reward, gamma, tol=1e-13).values
    residual = np.zeros_like(values)
    links = LinkedEdges.from_csr(csr(new_weights))
    known = only(reward, dirty)
    sweep_values(values, residual, links, dirty, known, gamma, kappa0=0.5, out_extra=new_mass, tol=1e-10)
    np.testing.assert_allclose(values, exact, atol=1e-6)
    np.testing.assert_allclose(residual, reward + gamma * dense(transitions) @ values - values, atol=1e-6)


def test_small_errors_do_not_pile_up() -> None:
    """Coarse repairs remember the residual they leave. Forgetting it, the control, loses more."""
    gamma, kappa0, tol, n = 0.95, 0.1, 1e-2, 80
    errors = {}
    for remember in (True, False):
        weights, mass = random_weights(9, n, density=0.05)
        values = first_hit(*chain(weights, mass, kappa0), gamma, tol=1e-13).values
        residual, rng = np.zeros(n), np.random.default_rng(1)
        for _ in range(200):
            node = int(rng.integers(n))
            mass[node] += 0.02
            _, reward = chain(weights, mass, kappa0)
            links = LinkedEdges.from_csr(csr(weights))
            sweep_values(values, residual, links, node, reward, gamma, kappa0=kappa0, out_extra=mass, tol=tol)
            if not remember:
                residual[:] = 0.0
        exact = first_hit(*chain(weights, mass, kappa0), gamma, tol=1e-13).values
        errors[remember] = np.abs(values - exact).max()
    assert errors[True] < errors[False]
    assert errors[True] <= tol / (1 - gamma)


def test_a_repair_touches_only_what_it_must() -> None:
    """Two separate lines of nodes: the good end of one does not concern the other."""
    lines = np.kron(np.eye(2), np.eye(100, k=1))
    links, n = LinkedEdges.from_csr(csr(lines)), 200
    values, source = np.zeros(n), np.zeros(n)
    source[10] = 1.0
    assert raise_values(values, links, 10, source, 0.9) == 11
    np.testing.assert_allclose(values[:11], 0.9 ** np.arange(10, -1, -1))
    assert not values[11:].any()
    values, residual = np.zeros(n), np.zeros(n)
    assert sweep_values(values, residual, links, 10, source, 0.9, tol=1e-12) == 11
    assert not values[11:].any()


@no_deadline
@given(seeds, st.floats(0.1, 1.0), st.booleans())
def test_raising_is_the_full_solution_or_says_that_it_cannot(seed: int, gamma: float, unit: bool) -> None:
    weights, mass, new_weights, new_mass, dirty = grow(seed)

    def solve(weights: np.ndarray, mass: np.ndarray) -> np.ndarray:
        graph, source = csr(weights), np.minimum(mass, 1.0)
        edges = (
            CSR(graph.indptr, graph.indices, np.ones(len(graph))) if unit else transition_probabilities(graph)
        )
        return max_product(edges, source, gamma).values

    values = solve(weights, mass)
    before = values.copy()
    links = LinkedEdges.from_csr(csr(new_weights))
    source = only(np.minimum(new_mass, 1.0), dirty)
    raised = raise_values(values, links, dirty, source, gamma, unit=unit)
    if raised is None:
        assert not unit  # new edges take nothing away from the shortest way
        np.testing.assert_array_equal(values, before)
    else:
        np.testing.assert_allclose(values, solve(new_weights, new_mass), rtol=1e-5)
        assert raised == (values > before).sum()


def test_a_fall_is_refused() -> None:
    links = LinkedEdges.from_csr(csr(np.eye(3, k=1)))
    values = np.array([0.81, 0.9, 1.0])
    assert raise_values(values, links, 2, np.array([0.0, 0.0, 0.5]), 0.9) is None
    assert values.tolist() == [0.81, 0.9, 1.0]


# --- torch, bad input --------------------------------------------------------------------------------------


def check_jacobi(device: str) -> None:
    transitions, reward = chain(*random_weights(7, nodes=120, density=0.05))
    zeros = np.zeros_like(reward)
    hit = _jacobi(transitions, reward, zeros, 0.97, 1e-12, 10_000, device, best=False)
    np.testing.assert_allclose(hit.values, first_hit(transitions, reward, 0.97, tol=1e-12).values, atol=1e-9)
    best = _jacobi(transitions, reward, reward, 0.97, 0.0, 10_000, device, best=True)
    np.testing.assert_allclose(best.values, max_product(transitions, reward, 0.97).values, rtol=1e-6)
    assert best.converged


def test_torch_agrees_with_the_compiled_sweeps() -> None:
    check_jacobi("cpu")


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_compiled_sweeps() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check_jacobi("cuda")
    transitions, reward = chain(*random_weights(7, nodes=120, density=0.05))
    gpu = first_hit(transitions, reward, 0.97, tol=1e-12, device="cuda").values
    np.testing.assert_allclose(gpu, first_hit(transitions, reward, 0.97, tol=1e-12).values, atol=1e-9)


def test_an_empty_graph_has_no_values() -> None:
    empty = CSR([0], [], [])
    assert len(first_hit(empty, [], 0.9).values) == 0
    assert len(max_product(empty, [], 0.9).values) == 0


LINE = csr(np.eye(3, k=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CSR([0, 2], [0], [1.0]), "indptr must run from 0 to 1"),
        (lambda: CSR([0, 2, 1], [0], [1.0]), "must not decrease"),
        (lambda: CSR([0, 1], [1], [1.0]), r"indices must be in \[0, 1\)"),
        (lambda: CSR([0, 1], [0], [1.0, 2.0]), "2 weights"),
        (lambda: CSR([0, 1], [0], [float("nan")]), "finite"),
        (lambda: CSR([0, 1], [0], [-1.0]), "at least 0"),
        (lambda: first_hit(LINE, [0.0, 0.0], 0.9), "reward must have shape"),
        (lambda: first_hit(LINE, [0.0, 0.0, 1.5], 0.9), "reward must be in"),
        (lambda: first_hit(LINE, [0.0, 0.0, float("nan")], 0.9), "reward must be in"),
        (lambda: first_hit(LINE, [0.0, 0.0, 1.0], 1.5), "gamma must be in"),
        (lambda: max_product(LINE, [0.0, 0.0, -1.0], 0.9), "source must be in"),
        (lambda: transition_probabilities(LINE, kappa0=-1.0), "kappa0"),
        (lambda: transition_probabilities(LINE, out_extra=[1.0]), "out_extra"),
        (
            lambda: raise_values(np.zeros(2), LinkedEdges.from_csr(LINE), 0, np.zeros(2), 0.9),
            "3 nodes are linked",
        ),
        (lambda: raise_values(np.zeros(3), LinkedEdges.from_csr(LINE), 3, np.zeros(3), 0.9), "dirty nodes"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
