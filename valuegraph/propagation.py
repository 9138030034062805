"""Values on a graph of transitions: discounted first hits of a good end, and the best way to one.

Node i is followed by node j with probability P_ij; rows may sum to less than one, and what is missing leads
nowhere. Values lie in [0, 1]. Full sweeps run over a CSR snapshot, `repairs` along linked edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.adjacency import CSR, LinkedEdges
from valuegraph.repairs import check_gamma, no_weight, raise_values, sweep_values

if TYPE_CHECKING:
    import torch

__all__ = [
    "Solution",
    "check_gamma",
    "first_hit",
    "max_product",
    "raise_values",
    "sweep_values",
    "transition_probabilities",
    "unit_values",
]

Values = NDArray[np.float64]

# Sweeps in an order that does not suit the graph gain one node each; past this many, best-first is faster.
_MAX_PRODUCT_SWEEPS = 16


@dataclass(frozen=True, slots=True)
class Solution:
    """Values and how far to trust them."""

    values: Values
    """(n,) in [0, 1]."""
    residual: float
    """Largest change of a value in the last sweep. With rho = gamma * max_i sum_j P_ij below one, no value is
    further than rho / (1 - rho) * residual from the exact one."""
    sweeps: int
    """Passes over the graph."""
    converged: bool
    """Whether the residual came down to the tolerance."""


def transition_probabilities(csr: CSR, kappa0: float = 0.0, out_extra: ArrayLike | None = None) -> CSR:
    """P_ij = w_ij / (sum_j w_ij + extra_i + kappa0).

    `kappa0` is the pseudo-count of what has not been seen yet and sends that share to value zero; `out_extra`
    is weight that leaves a node without an edge, such as the times an episode ended there.

    Args:
      csr: weights w_ij of n nodes.
      kappa0: at least 0.
      out_extra: (n,) at least 0; zero where not given.

    Raises:
      ValueError: a negative or non-finite kappa0 or out_extra, or a wrong shape.

    >>> graph = CSR([0, 2, 2], [0, 1], [1.0, 2.0])
    >>> transition_probabilities(graph, kappa0=1.0, out_extra=[4.0, 0.0]).weights
    array([0.125, 0.25 ], dtype=float32)
    """
    mass = csr.row_sums() + _extra(out_extra, csr.nodes) + _non_negative("kappa0", kappa0)
    mass[mass == 0.0] = 1.0  # a node without weight has no edge that could carry any
    shares = csr.weights / np.repeat(mass, np.diff(csr.indptr))
    return CSR(csr.indptr, csr.indices, shares.astype(np.float32))


def first_hit(
    transitions: CSR,
    reward: ArrayLike,
    gamma: float,
    *,
    tol: float = 1e-6,
    max_sweeps: int = 10_000,
    initial: ArrayLike | None = None,
    device: str = "cpu",
) -> Solution:
    """Discounted probability that a walk ends well, h = r + gamma P h, the smallest solution in [0, 1].

    r_i is the probability that node i is itself a good end. Since r_i + sum_j P_ij is at most one, passing a
    node twice adds nothing; rows that sum to more (duplicate edges added up) cannot lift a value above one.
    Gauss-Seidel in reverse order of insertion (successors are mostly inserted later), until the residual is
    at most `tol`; on another device Jacobi. Puterman 1994, "Markov Decision Processes", section 6.3.

    Args:
      transitions: P, n nodes.
      reward: (n,) in [0, 1].
      gamma: discount in [0, 1].
      tol: largest change of a value in the last sweep.
      max_sweeps: where to give up; see `Solution.converged`.
      initial: (n,) values to start from, such as those before the graph grew. Where gamma and the rows are
        one, only a start from below (the default, zero) finds the smallest solution.
      device: "cpu" (compiled), or a torch device such as "cuda".

    Raises:
      ValueError: reward, initial or gamma out of range, or of the wrong shape.

    A walk 0 -> 1 that ends well half of the time at 1, and returns to 0 the other half:

    >>> first_hit(CSR([0, 1, 2], [1, 0], [1.0, 0.5]), [0.0, 0.5], gamma=0.8, tol=1e-12).values.round(6)
    array([0.588235, 0.735294])
    """
    r = unit_values("reward", reward, transitions.nodes)
    values = np.zeros_like(r) if initial is None else unit_values("initial", initial, transitions.nodes)
    check_gamma(gamma)
    if device != "cpu":
        return _jacobi(transitions, r, values, gamma, tol, max_sweeps, device, best=False)
    from valuegraph.value_kernels import first_hit_sweeps

    sweeps, residual = first_hit_sweeps(
        transitions.indptr, transitions.indices, transitions.weights, r, gamma, tol, max_sweeps, values
    )
    return Solution(values, float(residual), int(sweeps), bool(residual <= tol))


def max_product(
    csr: CSR, source: ArrayLike, gamma: float, *, tol: float = 0.0, device: str = "cpu"
) -> Solution:
    """Value of the best known way, v_i = max(s_i, max_j gamma w_ij v_j): the largest product over paths.

    With unit weights, gamma^(steps to the nearest source); with probabilities, the likeliest way. gamma * w
    is kept below one, so that no loop feeds on itself. Gauss-Seidel in reverse order of insertion until no
    value changes by more than `tol`; where that order does not suit the graph, best-first (Dijkstra 1959).

    Args:
      csr: weights w, n nodes, at least 0.
      source: (n,) value of each node by itself, in [0, 1].
      gamma: discount in [0, 1].
      tol: 0 is exact.
      device: "cpu" (compiled), or a torch device such as "cuda".

    Raises:
      ValueError: source or gamma out of range, or of the wrong shape.

    >>> max_product(CSR([0, 2, 3, 3], [1, 2, 2], [1.0, 0.5, 0.9]), [0.0, 0.0, 1.0], gamma=0.9).values
    array([0.729, 0.81 , 1.   ])
    """
    values = unit_values("source", source, csr.nodes)
    check_gamma(gamma)
    if device != "cpu":
        return _jacobi(csr, values, values, gamma, tol, csr.nodes + 1, device, best=True)
    from valuegraph.value_kernels import max_product_sweeps, raise_max_product

    changed = np.zeros(csr.nodes, np.bool_)
    sweeps, residual = max_product_sweeps(
        csr.indptr, csr.indices, csr.weights, gamma, tol, _MAX_PRODUCT_SWEEPS, values, changed
    )
    if residual > tol:
        # The weights are final: a mass of one per node leaves them as they are.
        links = LinkedEdges.from_csr(csr)._replace(out_weight=np.ones(csr.nodes))
        behind = np.unique(csr.sources[changed[csr.indices]]).astype(np.int64)
        own, none = values.copy(), no_weight(csr.nodes)
        raise_max_product(*links, none, 0.0, False, own, gamma, behind, values)
        residual, sweeps = 0.0, sweeps + 1
    return Solution(values, float(residual), int(sweeps), True)


def _jacobi(
    csr: CSR,
    source: Values,
    values: Values,
    gamma: float,
    tol: float,
    max_sweeps: int,
    device: str,
    *,
    best: bool,
) -> Solution:
    """Both fixed points in torch: every node at once, from the values of the sweep before."""
    import torch

    def put(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    indptr, indices, weights = put(csr.indptr), put(csr.indices), put(csr.weights).double() * gamma
    if best:
        weights = weights.clamp(max=float(np.nextafter(1.0, 0.0)))
    s, h, residual, sweeps = put(source), put(values), float("inf"), 0
    while sweeps < max_sweeps and residual > tol:
        carried = weights * h[indices]
        if best:
            # Segments, not scattered atomic additions: the same sums in the same order on every run.
            new = torch.maximum(s, torch.segment_reduce(carried, "max", offsets=indptr, initial=0.0))
        else:
            new = (s + torch.segment_reduce(carried, "sum", offsets=indptr)).clamp(max=1.0)
        residual, h, sweeps = float((new - h).abs().max()) if len(h) else 0.0, new, sweeps + 1
    return Solution(h.cpu().numpy(), residual, sweeps, residual <= tol)


def unit_values(name: str, numbers: ArrayLike, nodes: int) -> Values:
    """(nodes,) a copy of the numbers; raises ValueError unless there are so many, in [0, 1]."""
    array = np.array(numbers, dtype=np.float64)  # a copy: the solution grows in it
    if array.shape != (nodes,):
        raise ValueError(f"{name} must have shape ({nodes},), got {array.shape}")
    if nodes and not (array.min() >= 0.0 and array.max() <= 1.0):  # also false for NaN
        raise ValueError(f"{name} must be in [0, 1]")
    return array


def _extra(out_extra: ArrayLike | None, nodes: int) -> Values | float:
    if out_extra is None:
        return 0.0
    extra = np.asarray(out_extra, dtype=np.float64)
    if extra.shape != (nodes,) or not (np.isfinite(extra) & (extra >= 0.0)).all():
        raise ValueError(f"out_extra must hold {nodes} finite numbers, at least 0")
    return extra


def _non_negative(name: str, number: float) -> float:
    if not 0.0 <= number < np.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {number}")
    return number
