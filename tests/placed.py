"""Arrays at any byte of a memory full of canaries, for tests of what lies around and between their elements."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

CANARY = 0xA5

places = st.tuples(st.integers(0, 63), st.sampled_from([1, 1, 2, 3, 4, -1, -2]))
"""Offset in bytes, and step in elements; 4 stands for fields of packed records, mostly off their alignment."""


class Placed:
    """Values laid into memory from some byte on, some step apart."""

    def __init__(self, values, offset, step):
        stride = step * values.itemsize + (step == 4)
        reach = max(values.size - 1, 0) * stride
        self.memory = np.full(64 + offset + abs(reach) + values.itemsize + 64, CANARY, np.uint8)
        self.layout = values.shape, values.dtype, 64 + offset - min(reach, 0), (stride,)
        self.array = self.view(self.memory)
        self.array[...] = values

    def view(self, memory):
        shape, dtype, start, strides = self.layout
        return np.ndarray(shape, dtype, memory, start, strides)

    def assert_apart(self, label):
        """Nothing but the elements has been written."""
        rest = self.memory.copy()
        self.view(rest)[...] = np.full(self.array.itemsize, CANARY, np.uint8).view(self.array.dtype)[0]
        assert (rest == CANARY).all(), f"{label}: written outside"
