"""Compiled loops over the table of edges. Imported only where they run: numba is slow to load.

Each is compiled once, on first use, for one set of types and kept on disk. They hold no Python state and
release the interpreter lock. Arguments are not checked here: callers do.
"""

# mypy: allow-untyped-defs

from typing import Any

import numpy as np
from numba import njit

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}

EMPTY = -1  # in a slot of the hash table, and at the end of a chain
FAINT = 1e-4  # nearness to an edge below which it is not looked for


@njit(**OPTIONS)
def link(edges, start, stop, first_out, first_in):
    """Chain the edges from `start` to `stop` in front of those already chained."""
    for e in range(start, stop):
        i, j = edges[e].tail, edges[e].head
        edges[e].next_out = first_out[i]
        first_out[i] = e
        edges[e].next_in = first_in[j]
        first_in[j] = e


@njit(**OPTIONS)
def _shift(slots):
    """How far down the hash of an edge moves to index the slots, of which there is a power of two."""
    bits = np.uint64(64)
    while (len(slots) >> (np.uint64(64) - bits)) > 1:
        bits -= np.uint64(1)
    return bits


@njit(**OPTIONS)
def _hash(tail, head):
    """Multiplicative hash (Knuth's golden ratio) of an edge: its best bits are on top."""
    return (np.uint64(tail) << np.uint64(32) | np.uint64(head)) * np.uint64(0x9E3779B97F4A7C15)


@njit(**OPTIONS)
def _entry(tail, head, e):
    """What a slot holds: 31 bits of the hash above the number of the edge."""
    return np.int64((_hash(tail, head) >> np.uint64(12)) & np.uint64(0x7FFFFFFF)) << 32 | e


@njit(**OPTIONS)
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


@njit(**OPTIONS)
def fill_slots(slots, edges, size):
    """Enter the first `size` edges, all different, into an empty table."""
    shift = _shift(slots)
    for e in range(size):
        tail, head = edges[e].tail, edges[e].head
        slots[_slot(slots, edges, tail, head, shift)] = _entry(tail, head, e)


@njit(**OPTIONS)
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


@njit(**OPTIONS)
def look_up(slots, edges, tails, heads, found):
    """Weight of each edge asked for, 0 for those that do not exist."""
    shift = _shift(slots)
    for t in range(len(tails)):
        at = _slot(slots, edges, tails[t], heads[t], shift)
        found[t] = 0.0 if slots[at] == EMPTY else edges[slots[at] & 0xFFFFFFFF].weight


@njit(**OPTIONS)
def _nearest_edge(slots, edges, shift, tails, near_tail, heads, near_head):
    """Largest near_tail[i] * near_head[j] over edges from tails[i] to heads[j]; 0 if all are below FAINT."""
    best = 0.0
    for i in range(len(tails)):
        for j in range(len(heads)):
            near = near_tail[i] * near_head[j]
            if near <= best or near < FAINT or tails[i] < 0 or heads[j] < 0:
                continue
            if slots[_slot(slots, edges, tails[i], heads[j], shift)] != EMPTY:
                best = near
    return best


@njit(**OPTIONS)
def follow(slots, edges, nodes, kernel, forward, backward):
    """How near each row and the one before are to an edge that leads here, and to one that leads back."""
    shift = _shift(slots)
    for t in range(1, len(nodes)):
        here, there, near, next_near = nodes[t - 1], nodes[t], kernel[t - 1], kernel[t]
        forward[t] = np.sqrt(_nearest_edge(slots, edges, shift, here, near, there, next_near))
        backward[t] = np.sqrt(_nearest_edge(slots, edges, shift, there, next_near, here, near))


@njit(**OPTIONS)
def reach(slots, edges, nodes, kernel, window, reached):
    """Raise each entry to the best weakest link of a chain of edges that leads there from an earlier one."""
    shift = _shift(slots)
    for t in range(1, len(nodes)):
        for s in range(t - 1, max(t - 1 - window, -1), -1):
            if reached[s] > reached[t]:
                near = _nearest_edge(slots, edges, shift, nodes[s], kernel[s], nodes[t], kernel[t])
                reached[t] = max(reached[t], min(reached[s], np.sqrt(near)))


@njit(**OPTIONS)
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
