"""What is known of each node of a value graph, beside its key and its edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuegraph.growing import GrowingArray
from valuegraph.texts import Texts

__all__ = ["COUNTED", "LEDGER", "NodeTable"]

COUNTED = ("visits", "credit", "episodes", "successes", "won", "ended")
"""What episodes add to."""
_LOST = ("gone", "gone_worth")
LEDGER = (*COUNTED, *_LOST)
"""And the weight of ways to what was forgotten, and that times what it was worth."""

_NOTHING: Mapping[str, NDArray[np.float64]] = MappingProxyType({})


class NodeTable:
    """Statistics, value and text of n nodes, 68 bytes a node and its text; 16 more once some were forgotten.

    Sums are kept in double precision, which counts to 2^53 without an error.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),
        goal_of: ArrayLike = (),
        values: ArrayLike = (),
        residual: ArrayLike | None = None,
        ledger: Mapping[str, NDArray[np.float64]] = _NOTHING,
    ) -> None:
        self.texts = Texts(texts)
        none = np.zeros(len(self.texts))
        self._goal_of = GrowingArray(goal_of, np.int32)
        self._values = GrowingArray(values, np.float64)
        self._residual = GrowingArray(none if residual is None else residual, np.float64)
        held = [name for name in LEDGER if name in COUNTED or ledger.get(name, none).any()]
        self._columns = {name: GrowingArray(ledger.get(name, none), np.float64) for name in held}

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def values(self) -> NDArray[np.float64]:
        """(n,) value h of each node, in [0, 1]."""
        return self._values.rows

    @property
    def residual(self) -> NDArray[np.float64]:
        """(n,) how far each value is from what its successors say, as the last repair left it."""
        return self._residual.rows

    @property
    def goal_of(self) -> NDArray[np.int32]:
        """(n,) row of the goal that each node was made for."""
        return self._goal_of.rows

    @property
    def away(self) -> NDArray[np.float64]:
        """(n,) weight that leaves a node without an edge: episodes that ended here, ways to what is gone."""
        ended = self.column("ended")
        return ended + self.column("gone") if "gone" in self._columns else ended

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use beside the texts, room for more included."""
        held = (self._goal_of, self._values, self._residual, *self._columns.values())
        return sum(rows.nbytes for rows in held)

    def column(self, name: str) -> NDArray[np.float64]:
        """(n,) a statistic, one of `LEDGER`; zeros that cannot be written to where nothing is gone."""
        if name in _LOST and name not in self._columns:
            return np.broadcast_to(np.float64(0.0), len(self))
        return self._columns[name].rows

    def extend(self, texts: Iterable[str], goal: int, values: NDArray[np.float64]) -> None:
        """New nodes for one goal."""
        self.texts.extend(texts)
        self._goal_of.extend(np.full(len(values), goal))
        self._values.extend(values)
        for rows in (self._residual, *self._columns.values()):
            rows.extend(np.zeros(len(values)))
