"""Arrays from bytes in the safetensors format, with numpy alone: a bundle loads where that package is not.

The format: eight bytes that count those of a JSON header, the header (name -> dtype, shape, place of the values), and
the values, without gaps. Source: https://huggingface.co/docs/safetensors.
"""

import json
import math
from typing import Any

import numpy as np

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "|b1",
}


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Name -> array, a copy each.

    Raises:
        ValueError: the bytes are not whole, or not of this format.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError("the header is cut off")
    header = json.loads(content[8:start])
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in header.items()}
    reached = 0
    for first, last, _, _ in sorted(places.values(), key=lambda place: place[:2]):
        if first != reached:
            raise ValueError("the values overlap, or leave a gap")
        reached = last
    if start + reached != len(content):
        raise ValueError(f"it holds {len(content) - start} bytes of values, and the header speaks of {reached}")
    return {
        name: np.frombuffer(content[start + first : start + last], dtype=dtype).reshape(shape).copy()
        for name, (first, last, dtype, shape) in places.items()
    }


def _place(name: str, entry: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """First and last byte, type and shape of an array, checked against each other."""
    try:
        dtype = np.dtype(DTYPES[entry["dtype"]])
        shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the entry of {name!r} is damaged") from None
    if not all(type(size) is int and size >= 0 for size in (*shape, first, last)):
        raise ValueError(f"the shape or the place of {name!r} is no whole number")
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the bytes of {name!r} do not fit its shape")
    return first, last, dtype, shape
