"""Compiled loops over edges. Imported only inside the functions that run them: numba is slow to load.

Each is compiled once, on first use, for one set of types and kept on disk. They hold no Python state and
release the interpreter lock. Arguments are not checked here: callers do.
"""

# mypy: allow-untyped-defs

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}

EMPTY = -1  # in a slot of the hash table, and at the end of a chain
_ONE_WAY = 4  # sweeps, latest node first, before every other one crosses the edges the other way
LARGEST = 1.0 - 2.0**-24  # gamma * w stays below one, or a loop in the graph feeds on itself


# --- full sweeps over CSR rows -----------------------------------------------------------------------------


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
def _share(weight, mass):
    """Probability of an edge; where nothing has any weight, none."""
    return weight / mass if mass > 0.0 else 0.0


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


# --- the edge table ----------------------------------------------------------------------------------------


@njit(**_OPTIONS)
def link(edges, start, stop, first_out, first_in):
    """Chain the edges from `start` to `stop` in front of those already chained."""
    for e in range(start, stop):
        i, j = edges[e].tail, edges[e].head
        edges[e].next_out = first_out[i]
        first_out[i] = e
        edges[e].next_in = first_in[j]
        first_in[j] = e


@njit(**_OPTIONS)
def _shift(slots):
    """How far down the hash of an edge moves to index the slots, of which there is a power of two."""
    bits = np.uint64(64)
    while (len(slots) >> (np.uint64(64) - bits)) > 1:
        bits -= np.uint64(1)
    return bits


@njit(**_OPTIONS)
def _hash(tail, head):
    """Multiplicative hash (Knuth's golden ratio) of an edge: its best bits are on top."""
    return (np.uint64(tail) << np.uint64(32) | np.uint64(head)) * np.uint64(0x9E3779B97F4A7C15)


@njit(**_OPTIONS)
def _entry(tail, head, e):
    """What a slot holds: 31 bits of the hash above the number of the edge."""
    return np.int64((_hash(tail, head) >> np.uint64(12)) & np.uint64(0x7FFFFFFF)) << 32 | e


@njit(**_OPTIONS)
def _slot(slots, edges, tail, head, shift):
    """Slot of an edge, or the empty one where it belongs: open addressing, linear probing.

    Nearly always the bits of the hash decide, so that no branch waits for the edge itself to be fetched.
    """
    at = np.int64(_hash(tail, head) >> shift)
    wanted = _entry(tail, head, 0) >> 32
    mask = len(slots) - 1
    while True:
        entry = slots[at]
        if entry == EMPTY:
            return at
        if entry >> 32 == wanted:
            e = entry & 0xFFFFFFFF
            if edges[e].head == head and edges[e].tail == tail:
                return at
        at = (at + 1) & mask


@njit(**_OPTIONS)
def fill_slots(slots, edges, size):
    """Enter the first `size` edges, all different, into an empty table."""
    shift = _shift(slots)
    for e in range(size):
        tail, head = edges[e].tail, edges[e].head
        slots[_slot(slots, edges, tail, head, shift)] = _entry(tail, head, e)


@njit(**_OPTIONS)
def upsert(slots, edges, first_out, first_in, out_weight, size, tails, heads, amounts, eta):
    """w <- (1 - eta) w + amount for each event in turn; returns the number of edges. There is room."""
    shift = _shift(slots)
    for t in range(len(tails)):
        i, j = tails[t], heads[t]
        at = _slot(slots, edges, i, j, shift)
        if slots[at] == EMPTY:
            slots[at] = _entry(i, j, size)
            edges[size].tail = i
            edges[size].head = j
            edges[size].weight = 0.0
            link(edges, size, size + 1, first_out, first_in)
            size += 1
        e = slots[at] & 0xFFFFFFFF
        old = edges[e].weight
        edges[e].weight = (1.0 - eta) * old + amounts[t]
        out_weight[i] += np.float64(edges[e].weight) - np.float64(old)
    return size


@njit(**_OPTIONS)
def look_up(slots, edges, tails, heads, found):
    """Weight of each edge asked for, 0 for those that do not exist."""
    shift = _shift(slots)
    for t in range(len(tails)):
        at = _slot(slots, edges, tails[t], heads[t], shift)
        found[t] = 0.0 if slots[at] == EMPTY else edges[slots[at] & 0xFFFFFFFF].weight


@njit(**_OPTIONS)
def sort_rows(edges, size, indptr, indices, weights):
    """Edges in order of tail, then head: two stable counting sorts, O(n + E)."""
    n = len(indptr) - 1
    start = np.zeros(n + 1, np.int64)
    for e in range(size):
        start[edges[e].head + 1] += 1
        indptr[edges[e].tail + 1] += 1
    for i in range(n):
        start[i + 1] += start[i]
        indptr[i + 1] += indptr[i]
    by_head = np.empty(size, np.int32)
    for e in range(size):
        j = edges[e].head
        by_head[start[j]] = e
        start[j] += 1
    start[:] = indptr
    for k in range(size):
        e = by_head[k]
        i = edges[e].tail
        indices[start[i]] = edges[e].head
        weights[start[i]] = edges[e].weight
        start[i] += 1
