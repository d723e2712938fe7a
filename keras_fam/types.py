"""Type names used in signatures."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import keras

Tensor: TypeAlias = Any
"""A tensor of the current backend, a NumPy array, a `keras.KerasTensor` or nested lists."""

Data: TypeAlias = Any
"""What Keras reads batches of: arrays, tensors, dicts or lists of them, texts, a dataset or a generator."""

Shape: TypeAlias = tuple[int | None, ...]
"""A tensor's shape, None where it is not known."""

Path: TypeAlias = str | os.PathLike[str]
"""The name of a file or folder."""

Verbosity: TypeAlias = int | Literal["auto"]
"""What Keras prints of a run: 0 nothing, 1 a progress bar, 2 a line an epoch; `"auto"` is mostly the bar."""

Callbacks: TypeAlias = Sequence[keras.callbacks.Callback] | keras.callbacks.CallbackList | None
"""What Keras calls during a run."""

if TYPE_CHECKING:
    MixedIn: TypeAlias = Any
else:
    MixedIn = object
"""The base of a class that is mixed into one of Keras's, which has the attributes that this one does not define."""
