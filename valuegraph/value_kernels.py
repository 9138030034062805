"""Compiled loops that solve for values: full sweeps, and repairs along linked edges. See `edge_kernels`."""

# mypy: allow-untyped-defs

import numpy as np
from numba import njit

from valuegraph.edge_kernels import EMPTY, OPTIONS

_ONE_WAY = 4  # sweeps, latest node first, before every other one crosses the edges the other way
LARGEST = 1.0 - 2.0**-24  # gamma * w stays below one, or a loop in the graph feeds on itself


# --- full sweeps over CSR rows -----------------------------------------------------------------------------


@njit(**OPTIONS)
def first_hit_sweeps(indptr, indices, weights, reward, gamma, tol, max_sweeps, values):
    """Gauss-Seidel on h = r + gamma P h, latest node first; returns (sweeps, residual)."""
    n = len(indptr) - 1
    residual = np.inf
    sweeps = 0
    while sweeps < max_sweeps and residual > tol:
        residual = 0.0
        forward = sweeps >= _ONE_WAY and sweeps % 2 == 0
        for k in range(n):
            i = k if forward else n - 1 - k
            total = 0.0
            stay = 0.0
            for e in range(indptr[i], indptr[i + 1]):
                total += weights[e] * values[indices[e]]
                if indices[e] == i:
                    stay += weights[e]
            total -= stay * values[i]
            # A loop of a node onto itself is solved, not iterated.
            value = (reward[i] + gamma * max(total, 0.0)) / (1.0 - min(gamma * stay, LARGEST))
            value = min(1.0, value)
            change = abs(value - values[i])
            if change > residual:
                residual = change
            values[i] = value
        sweeps += 1
    return sweeps, residual


@njit(**OPTIONS)
def max_product_sweeps(indptr, indices, weights, gamma, tol, max_sweeps, values, changed):
    """Gauss-Seidel on v_i = max(v_i, gamma max_j w_ij v_j), latest node first; returns (sweeps, residual).

    `changed` marks the nodes that the last sweep raised.
    """
    n = len(indptr) - 1
    residual = np.inf
    sweeps = 0
    while sweeps < max_sweeps and residual > tol:
        residual = 0.0
        forward = sweeps >= _ONE_WAY and sweeps % 2 == 0
        changed[:] = False
        for k in range(n):
            i = k if forward else n - 1 - k
            old = values[i]
            best = old
            for e in range(indptr[i], indptr[i + 1]):
                best = max(best, min(gamma * weights[e], LARGEST) * values[indices[e]])
            if best > old:
                residual = max(residual, best - old)
                values[i] = best
                changed[i] = True
        sweeps += 1
    return sweeps, residual


# --- small repairs along linked edges ----------------------------------------------------------------------


@njit(**OPTIONS)
def _share(weight, mass):
    """Probability of an edge; where nothing has any weight, none."""
    return weight / mass if mass > 0.0 else 0.0


@njit(**OPTIONS)
def _push(keys, nodes, size, key, node):
    """Put a node on the binary max-heap; returns (keys, nodes, size), grown where they were full."""
    if size == len(keys):
        keys = np.concatenate((keys, np.empty_like(keys)))
        nodes = np.concatenate((nodes, np.empty_like(nodes)))
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] >= key:
            break
        keys[at], nodes[at] = keys[up], nodes[up]
        at = up
    keys[at], nodes[at] = key, node
    return keys, nodes, size + 1


@njit(**OPTIONS)
def _pop(keys, nodes, size):
    """Take the node with the largest key off the heap: it is left behind the end, at [size - 1]."""
    top_key, top_node = keys[0], nodes[0]
    size -= 1
    key, node = keys[size], nodes[size]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        if down + 1 < size and keys[down + 1] > keys[down]:
            down += 1
        if keys[down] <= key:
            break
        keys[at], nodes[at] = keys[down], nodes[down]
        at = down
    keys[at], nodes[at] = key, node
    keys[size], nodes[size] = top_key, top_node
    return size


@njit(**OPTIONS)
def raise_max_product(
    edges, first_out, first_in, out_weight, extra, kappa0, unit, source, gamma, dirty, values
):
    """Label-setting (Dijkstra in the product semiring) outwards from the dirty nodes, against the edges.

    Returns the number of nodes raised, or -1, nothing changed, where a dirty node's value would have to fall.
    """
    keys = np.empty(64, np.float64)
    nodes = np.empty(64, np.int64)
    size = 0
    backed = np.empty(len(dirty), np.float64)
    for d in range(len(dirty)):
        i = dirty[d]
        best = source[i]
        mass = out_weight[i] + extra[i] + kappa0
        e = first_out[i]
        while e != EMPTY:
            p = 1.0 if unit else _share(edges[e].weight, mass)
            best = max(best, min(gamma * p, LARGEST) * values[edges[e].head])
            e = edges[e].next_out
        # Snapshots hold P in single precision: a difference of that size is no fall.
        if best < values[i] * (1.0 - 1e-6):
            return -1
        backed[d] = best
    for d in range(len(dirty)):
        if backed[d] > values[dirty[d]]:
            keys, nodes, size = _push(keys, nodes, size, backed[d], dirty[d])
    touched = 0
    while size:
        size = _pop(keys, nodes, size)
        value, j = keys[size], nodes[size]
        if value <= values[j]:
            continue  # it came off the heap before, with a larger value
        values[j] = value
        touched += 1
        e = first_in[j]
        while e != EMPTY:
            i = edges[e].tail
            p = 1.0 if unit else _share(edges[e].weight, out_weight[i] + extra[i] + kappa0)
            candidate = min(gamma * p, LARGEST) * value
            if candidate > values[i]:
                keys, nodes, size = _push(keys, nodes, size, candidate, i)
            e = edges[e].next_in
    return touched


@njit(**OPTIONS)
def sweep_first_hit(
    edges,
    first_out,
    first_in,
    out_weight,
    extra,
    kappa0,
    reward,
    gamma,
    tol,
    max_updates,
    dirty,
    values,
    residual,
):
    """Prioritized sweeping on h = r + gamma P h: the node with the largest residual first (Gauss-Southwell).

    `residual` is kept equal to r + gamma P h - h, also for what stays below tol; returns the updates made.
    """
    keys = np.empty(64, np.float64)
    nodes = np.empty(64, np.int64)
    size = 0
    for d in range(len(dirty)):
        i = dirty[d]
        mass = out_weight[i] + extra[i] + kappa0
        total = 0.0
        e = first_out[i]
        while e != EMPTY:
            total += edges[e].weight * values[edges[e].head]
            e = edges[e].next_out
        residual[i] = reward[i] + gamma * _share(total, mass) - values[i]
        if abs(residual[i]) > tol:
            keys, nodes, size = _push(keys, nodes, size, abs(residual[i]), i)
    updates = 0
    while size and updates < max_updates:
        size = _pop(keys, nodes, size)
        j = nodes[size]
        change = residual[j]
        if abs(change) <= tol:
            continue  # settled since it was put on the heap
        updates += 1
        change = min(1.0, max(0.0, values[j] + change)) - values[j]
        values[j] += change
        residual[j] = 0.0
        e = first_in[j]
        while e != EMPTY:
            i = edges[e].tail
            old = abs(residual[i])
            p = _share(edges[e].weight, out_weight[i] + extra[i] + kappa0)
            residual[i] += min(gamma * p, LARGEST) * change
            if abs(residual[i]) > tol and abs(residual[i]) > old:
                keys, nodes, size = _push(keys, nodes, size, abs(residual[i]), i)
            e = edges[e].next_in
    return updates
