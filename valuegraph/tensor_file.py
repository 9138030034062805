"""Arrays in and out of the safetensors format in one pass: nothing is copied, a checksum can ride along.

A file is the header's length in 8 bytes, a JSON header `{name: {"dtype", "shape", "data_offsets"}}` and the
arrays' bytes without gaps, little-endian, row-major, as any safetensors library reads and writes it
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from valuegraph.durable import read_into

_CODES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_DTYPES = {name: np.dtype(code) for name, code in _CODES.items()}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def tensor_chunks(tensors: Mapping[str, np.ndarray]) -> Iterator[memoryview]:
    """The bytes of a safetensors file with these arrays.

    Raises `ValueError` at once, before anything is yielded, for a type that the format does not have.
    """
    entries: dict[str, dict[str, Any]] = {}
    offset = 0
    # Widest type first keeps every array aligned to its own width.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in ordered:
        array = tensors[name]
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise ValueError(f"tensor {name!r}: safetensors has no type for {array.dtype}")
        stop = offset + array.nbytes
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return _chunks(header, [tensors[name] for name in ordered])


def _chunks(header: bytes, arrays: list[np.ndarray]) -> Iterator[memoryview]:
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for array in arrays:
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        yield plain.reshape(-1).view(np.uint8).data


def read_tensors(file: BinaryIO, size: int, look: Callable[[Any], object]) -> dict[str, np.ndarray]:
    """The arrays of an open, unbuffered safetensors file of `size` bytes, each with memory of its own.

    `look` is shown every byte, in order, as it is read. Raises `ValueError` for what is not such a file.
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise ValueError("the header is longer than the file")
    header = file.read(length)
    look(prefix)
    look(header)
    entries = json.loads(header)
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object")
    entries.pop("__metadata__", None)
    tensors, position = {}, 0
    try:
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            end = start + math.prod(shape) * dtype.itemsize
            if start != position or stop != end or 8 + length + stop > size:
                raise ValueError(f"tensor {name!r} does not lie where its header says")
            tensors[name] = np.empty(shape, dtype)
            view = tensors[name].reshape(-1).view(np.uint8).data
            if read_into(file, view) < len(view):
                raise ValueError(f"tensor {name!r} is cut short")
            look(view)
            position = stop
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the header is malformed ({error!r})") from error
    if 8 + length + position != size:
        raise ValueError("there are bytes behind the last tensor")
    return tensors
