"""Type names used in signatures."""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the current backend, a NumPy array, a `keras.KerasTensor` or nested lists."""
