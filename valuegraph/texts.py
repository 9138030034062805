"""Many texts in one buffer, read one at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from valuegraph.growing import GrowingArray

__all__ = ["Texts"]

_END = b"\xff"  # a byte that UTF-8 never has


class Texts(Sequence[str]):
    """Texts that take nine bytes each beside their UTF-8, where a list of strings takes fifty-seven and an
    object for each. Texts that are equal and come in one call share a place.

    >>> texts = Texts(["north", "south", "north"])
    >>> texts.extend(["west"])
    >>> texts[2], texts[-2:], len(texts)
    ('north', ['north', 'west'], 4)
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._buffer = bytearray()
        self._starts = GrowingArray(np.empty(0, np.int64))
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Put texts at the end."""
        buffer, starts = self._buffer, []
        places: dict[str, int] = {}
        for text in texts:
            start = places.setdefault(text, len(buffer))
            if start == len(buffer):
                buffer += text.encode("utf-8", "surrogatepass") + _END  # JSON may hold half a character
            starts.append(start)
        self._starts.extend(starts)

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use, room for more included."""
        return sys.getsizeof(self._buffer) + self._starts.nbytes

    def _at(self, start: int) -> str:
        return self._buffer[start : self._buffer.find(_END, start)].decode("utf-8", "surrogatepass")

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        starts = self._starts.rows[at].tolist()
        return [self._at(start) for start in starts] if isinstance(at, slice) else self._at(starts)

    def __iter__(self) -> Iterator[str]:
        pieces = bytes(self._buffer).split(_END)[:-1]
        texts = [piece.decode("utf-8", "surrogatepass") for piece in pieces]
        if len(texts) == len(self):
            return iter(texts)
        places = np.unique(self._starts.rows, return_inverse=True)[1]
        return map(texts.__getitem__, places.tolist())

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
