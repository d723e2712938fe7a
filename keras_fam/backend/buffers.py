"""Buffers of fixed size that are written piece by piece, and pieces put together."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fam.types import Tensor


def write(buffer: Tensor, start: Tensor, update: Tensor, in_place: bool = False, after: Tensor | None = None) -> Tensor:
    """`buffer` with `update` from place `start` of axis 1 on.

    Args:
        buffer: `[b, s, ...]`.
        start: int scalar.
        update: `[b, t, ...]`.
        in_place: bool. torch writes into `buffer` itself. jax and tensorflow decide by themselves when they compile.
        after: `[b, ...]` or None, a result for which `buffer` was read. XLA writes into the same memory only if the
            write depends on that result. So on jax one number of it, times zero, is added to the update.

    Returns:
        `[b, s, ...]`.
    """
    if after is not None and keras.config.backend() == "jax":
        update = update + 0 * after[:, *[slice(1)] * (len(after.shape) - 1)]
    if in_place and keras.config.backend() == "torch":
        # Samplers repeat a row as a view of it, whose copies are all the same memory.
        return buffer.contiguous().index_copy_(1, ops.cast(start + ops.arange(update.shape[1]), "int64"), update)
    return ops.slice_update(buffer, [0, start, *[0] * (len(buffer.shape) - 2)], update)


def own_rows(x: Tensor, batch: int | Tensor) -> Tensor:
    """`x` `[1 or b, ...]` for `batch` rows, each with memory of its own, so that it can be written into."""
    rows = ops.broadcast_to(x, (batch, *x.shape[1:]))
    return rows.clone() if keras.config.backend() == "torch" else rows


def own_arrays(structure):
    """A structure of tensors, with memory of its own, so that it can be written into."""
    return keras.tree.map_structure(lambda x: x.clone(), structure) if keras.config.backend() == "torch" else structure


def join(parts: list[Tensor]) -> Tensor:
    """Outputs `[b, t, ...]` of several pieces as one `[b, length, ...]`.

    jax compiles an eager operation for every new shape and keeps it for ever. Chunks have any length, so there the
    pieces are put together on the host.
    """
    if len(parts) == 1:
        return parts[0]
    if keras.config.backend() == "jax" and all(is_concrete(part) for part in parts):
        return ops.convert_to_tensor(np.concatenate([np.asarray(part) for part in parts], axis=1))
    return ops.concatenate(parts, axis=1)


def cut(x: Tensor, start: int, stop: int) -> Tensor:
    """Places `start` to `stop` of axis 1 as a tensor; see `join` for why jax does that on the host."""
    if keras.config.backend() == "jax" and is_concrete(x):
        x = np.asarray(x)
    return ops.convert_to_tensor(x[:, start:stop])


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at now: not a symbolic tensor and not inside a compiled function."""
    if isinstance(x, keras.KerasTensor):
        return False
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return not isinstance(x, jax.core.Tracer)
    if backend == "tensorflow":
        import tensorflow as tf

        return not tf.is_tensor(x) or hasattr(x, "numpy")
    import torch

    if torch.compiler.is_compiling():
        return False
    return not isinstance(x, torch._subclasses.FakeTensor) and str(getattr(x, "device", "cpu")) != "meta"


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Arrays of the values of several concrete integer or bool tensors, with one synchronisation at most."""
    if keras.config.backend() == "torch":
        import torch

        away = [x for x in tensors if isinstance(x, torch.Tensor) and x.device.type != "cpu"]
        if len(away) > 1:
            flat = torch.cat([x.detach().reshape(-1).to(torch.int64) for x in away]).cpu().numpy()
            sizes = np.cumsum([x.numel() for x in away])[:-1]
            arrays = iter(np.split(flat, sizes))
            here = {id(x): next(arrays).reshape(x.shape) for x in away}
            return [here[id(x)] if id(x) in here else ops.convert_to_numpy(x) for x in tensors]
    if keras.config.backend() == "jax":
        import jax

        return [np.asarray(x) for x in jax.device_get(list(tensors))]
    return [ops.convert_to_numpy(x) for x in tensors]
