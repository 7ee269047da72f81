"""Arrays are read from safetensors bytes as the format's own library reads them; damage is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load, save

from nn_train.tensors import DTYPES, read_tensors

ARRAYS = st.sampled_from(sorted(DTYPES.values())).flatmap(
    lambda dtype: arrays(np.dtype(dtype), array_shapes(min_dims=0, min_side=0, max_side=5))
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=5))
def test_what_the_library_writes_is_read_to_the_bit(tensors: dict[str, np.ndarray]) -> None:
    content = save({name: np.ascontiguousarray(array) for name, array in tensors.items() if name != "__metadata__"})
    wanted, found = load(content), read_tensors(content)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


WHOLE = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])})


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_damaged_byte_gives_an_error_or_arrays_of_those_bytes(place: int, change: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= change
    try:
        found = read_tensors(bytes(damaged))
    except ValueError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(WHOLE)


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_what_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        read_tensors(WHOLE[:length])


def written(header: object, values: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-4, 4]}},
        {"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        },
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": "08"}},
        {"a": 3},
    ],
)
def test_a_header_that_lies_is_refused(header: object) -> None:
    with pytest.raises(ValueError):
        read_tensors(written(header, bytes(8)))
