"""Argument checks: every message names the argument, what was expected and what was received."""

import keras
import numpy as np
from keras import ops


def check_integer(name, value, minimum, maximum=None, maximum_reason=""):
    """Raises TypeError if `value` is no integer, ValueError if it lies outside [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r} of type {type(value).__name__}.")
    if value < minimum or (maximum is not None and value > maximum):
        upper = "" if maximum is None else f" and at most {maximum}{maximum_reason}"
        raise ValueError(f"`{name}` must be at least {minimum}{upper}. Received: {name}={value}.")
    return int(value)


def check_probability(name, value):
    """Raises TypeError if `value` is no number, ValueError if it lies outside [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} of type {type(value).__name__}.")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received: {name}={value}.")
    return float(value)


def check_flag(name, value):
    """Raises TypeError if `value` is no bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r} of type {type(value).__name__}.")
    return bool(value)


def check_block_shape(block_size, memory_segments, fam_length=0):
    """The three sizes of a FAM layer: B >= 1, m >= 0, 0 <= N <= B."""
    block_size = check_integer("block_size", block_size, 1)
    memory_segments = check_integer("memory_segments", memory_segments, 0)
    fam_length = check_integer("fam_length", fam_length, 0, block_size, f" (block_size={block_size})")
    return block_size, memory_segments, fam_length


def is_concrete(x):
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
    return str(getattr(x, "device", "cpu")) != "meta"


def check_token_ids(token_ids, vocabulary_size, name="token_ids"):
    """Rank 2, an integer dtype, and, where the values are known, inside the vocabulary.

    Args:
        token_ids: list, array or tensor, `[batch, length]`.
        vocabulary_size: int.
        name: str, the argument's name in messages.

    Returns:
        `token_ids`, as an array or tensor.
    """
    if not hasattr(token_ids, "shape"):
        token_ids = np.asarray(token_ids)
    if len(token_ids.shape) != 2:
        raise ValueError(
            f"`{name}` must have rank 2, [batch, length]. Received: {name} of shape {tuple(token_ids.shape)}."
        )
    dtype = (
        keras.backend.standardize_dtype(token_ids.dtype)
        if not hasattr(token_ids.dtype, "kind")
        else (token_ids.dtype.name)
    )
    if "int" not in str(dtype):
        raise TypeError(f"`{name}` must hold integers. Received: {name} of dtype {dtype}.")
    if is_concrete(token_ids) and 0 not in tuple(token_ids.shape):
        values = ops.convert_to_numpy(token_ids)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= vocabulary_size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"`{name}` must lie in the vocabulary, 0 to {vocabulary_size - 1}. Received: {name} with {wrong}."
            )
    return token_ids


def check_padding_mask(padding_mask, token_ids, name="padding_mask"):
    """A mask of the shape of the token ids, as far as both shapes are known."""
    if not hasattr(padding_mask, "shape"):
        padding_mask = np.asarray(padding_mask)
    expected, received = tuple(token_ids.shape), tuple(padding_mask.shape)
    if len(expected) != len(received) or any(
        e is not None and r is not None and e != r for e, r in zip(expected, received)
    ):
        raise ValueError(
            f"`{name}` must have the shape of `token_ids`, {expected}. Received: {name} of shape {received}."
        )
    return padding_mask
