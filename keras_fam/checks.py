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
    _check_number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received: {name}={value}.")
    return float(value)


def check_keywords(keywords, allowed):
    """Raises TypeError for a keyword argument that does not exist; Keras itself takes any and ignores it."""
    unknown = {name: value for name, value in keywords.items() if name not in allowed}
    if unknown:
        raise TypeError(
            f"Arguments must be among {', '.join(sorted(allowed))}. Received: "
            f"{', '.join(f'{name}={value!r}' for name, value in unknown.items())}."
        )


def check_positive(name, value):
    """Raises TypeError if `value` is no number, ValueError if it is not above 0."""
    _check_number(name, value)
    if not value > 0:
        raise ValueError(f"`{name}` must be above 0. Received: {name}={value}.")
    return value


def check_dropout(name, value):
    """Raises TypeError if `value` is no number, ValueError if it lies outside [0, 1)."""
    _check_number(name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{name}` must lie in [0, 1). Received: {name}={value}.")
    return value


def _check_number(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} of type {type(value).__name__}.")


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


def check_layer_shapes(block_size, inputs_shape, fam_shape=None, mask_shape=None):
    """The shapes of a layer's call arguments: `inputs` [b, length, d], `fam` [1 or b, N, d], `inputs_mask` [b, length].

    Dimensions that are not known yet agree with any.
    """
    inputs_shape = tuple(inputs_shape)
    if len(inputs_shape) != 3:
        raise ValueError(f"`inputs` must have rank 3, [batch, length, d]. Received: inputs of shape {inputs_shape}.")
    batch, _, dim = inputs_shape
    if fam_shape is not None:
        fam_shape = tuple(fam_shape)
        fits = len(fam_shape) == 3 and fam_shape[2] == dim and isinstance(fam_shape[1], int)
        if not fits or fam_shape[1] > block_size or not (fam_shape[0] == 1 or _agree(fam_shape[:1], (batch,))):
            raise ValueError(
                f"`fam` must have shape [1 or batch, N, d] with batch={batch}, N at most block_size={block_size} and "
                f"d={dim}. Received: fam of shape {fam_shape}."
            )
    if mask_shape is not None and not _agree(tuple(mask_shape), inputs_shape[:2]):
        raise ValueError(
            f"`inputs_mask` must have shape [batch, length], {inputs_shape[:2]}. Received: inputs_mask of shape "
            f"{tuple(mask_shape)}."
        )


def _agree(left, right):
    """Whether two shapes are the same, as far as both are known."""
    return len(left) == len(right) and all(x is None or y is None or x == y for x, y in zip(left, right))


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
        try:
            token_ids = np.asarray(token_ids)
        except ValueError as error:
            raise ValueError(
                f"`{name}` must have rank 2, [batch, length]. Received: rows that differ: {error}"
            ) from error
        if token_ids.size == 0:
            token_ids = token_ids.astype("int32")  # an empty list has no dtype of its own
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
    if not _agree(expected, received):
        raise ValueError(
            f"`{name}` must have the shape of `token_ids`, {expected}. Received: {name} of shape {received}."
        )
    return padding_mask


def check_weight(name, value):
    """Raises TypeError if `value` is no number, ValueError if it is below 0 or not finite."""
    _check_number(name, value)
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be at least 0 and finite. Received: {name}={value}.")
    return float(value)


def check_probabilities(name, value, count=None):
    """One probability, or a sequence of them: of `count` if that is given, and at least one.

    Returns:
        float array, `[1]` for one probability, else `[count]`.
    """
    if np.ndim(value) == 0:
        return np.array([check_probability(name, value)])
    shape = np.shape(value)
    if len(shape) != 1 or shape[0] == 0 or (count is not None and shape[0] != count):
        wanted = "[n] with n >= 1" if count is None else f"[{count}]"
        raise ValueError(f"`{name}` must be a float or of shape {wanted}. Received: {name} of shape {shape}.")
    return np.array([check_probability(name, each) for each in value])


def check_generator(name, value):
    """Raises TypeError if `value` is no `numpy.random.Generator`."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(
            f"`{name}` must be a numpy.random.Generator, e.g. np.random.default_rng(0). Received: {name}={value!r} "
            f"of type {type(value).__name__}."
        )
    return value


def check_sequence(name, token_ids):
    """Token ids of one text: rank 1 and an integer dtype.

    Returns:
        int32 array `[length]`.
    """
    token_ids = ops.convert_to_numpy(token_ids) if ops.is_tensor(token_ids) else np.asarray(token_ids)
    if token_ids.ndim != 1:
        raise ValueError(f"`{name}` must have rank 1, [length]. Received: {name} of shape {token_ids.shape}.")
    if token_ids.size and token_ids.dtype.kind not in "iu":  # an empty list has no dtype of its own
        raise TypeError(f"`{name}` must hold integers. Received: {name} of dtype {token_ids.dtype}.")
    return token_ids.astype("int32")


def check_document_start(document_start, token_ids):
    """`document_start`, `[batch]`, beside token ids, as far as both shapes are known."""
    if not hasattr(document_start, "shape"):
        document_start = np.asarray(document_start)
    expected, received = tuple(token_ids.shape[:1]), tuple(document_start.shape)
    if not _agree(expected, received):
        raise ValueError(
            f"`document_start` must have shape [batch], {expected}. Received: document_start of shape {received}."
        )
    return document_start


def check_stateful_batch(token_ids, batch_size, block_size):
    """A training batch of a stateful model: as many rows as it has, and whole blocks, where the state is carried on."""
    rows, length = token_ids.shape
    if not _agree((rows,), (batch_size,)) or (length is not None and length % block_size):
        raise ValueError(
            f"`token_ids` must have stateful_batch_size={batch_size} rows and a length that is a multiple of "
            f"block_size={block_size}. Received: token_ids of shape {tuple(token_ids.shape)}."
        )
