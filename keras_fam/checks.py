"""Argument checks: every message names the argument, what was expected and what was received."""

import os

import keras
import numpy as np
from keras import ops
from keras.src.backend import in_symbolic_scope

from keras_fam.backend.buffers import is_concrete, to_host


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


def check_path(name, value):
    """Raises TypeError if `value` is no path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"`{name}` must be a str or path-like. Received: {name}={value!r} of type {type(value).__name__}."
        )
    return value


def check_names(name, value):
    """Raises TypeError if `value` is no list or tuple of str."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"`{name}` must be a list of str. Received: {name}={value!r} of type {type(value).__name__}.")
    return list(value)


def check_finite(name, value):
    """Raises TypeError if `value` is no number, ValueError if it is not finite."""
    _check_number(name, value)
    if not np.isfinite(value):
        raise ValueError(f"`{name}` must be finite. Received: {name}={value}.")
    return float(value)


def check_spans(name, value):
    """A number above 0, or a sequence of them: a float, or a tuple of floats."""
    if isinstance(value, (list, tuple, np.ndarray)):
        if np.ndim(value) != 1 or len(value) == 0:
            raise ValueError(f"`{name}` must be a number or a flat sequence of numbers. Received: {name}={value!r}.")
        return tuple(check_spans(name, each) for each in value)
    return float(check_positive(name, check_finite(name, value)))


def check_initializer(name, value):
    """A Keras initializer, by name, configuration or object."""
    try:
        initializer = keras.initializers.get(value)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"`{name}` must be a Keras initializer. Received: {name}={value!r} ({error}).") from error
    if not isinstance(initializer, keras.initializers.Initializer):
        raise TypeError(f"`{name}` must be a Keras initializer. Received: {name}={value!r}.")
    return initializer


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
    known = (pair for pair in zip(left, right) if all(isinstance(x, int) for x in pair))
    return len(left) == len(right) and all(x == y for x, y in known)


def check_known_length(name, x):
    """Refuses a symbol for a length: a program that is exported by jax or torch would need a loop of unknown length."""
    if not isinstance(x.shape[1], (int, type(None))):
        raise ValueError(
            f"`{name}` must have a known length on {keras.config.backend()}: expected `export` with an "
            f"`input_signature` of fixed length. Received: {name} of shape ({', '.join(map(str, x.shape))})."
        )


def check_layer_call(options, inputs, fam=None, inputs_mask=None, sink=None):
    """The call arguments of a layer with memory: see `check_layer_shapes`; `sink` is `[1, 1, d]`."""
    named = {"inputs": inputs, "fam": fam, "inputs_mask": inputs_mask, "sink": sink}
    for name, x in named.items():
        if x is not None and not hasattr(x, "shape"):
            raise TypeError(f"`{name}` must be a tensor. Received: {name} of type {type(x).__name__}.")
    shapes = (None if x is None else x.shape for x in (inputs, fam, inputs_mask))
    check_layer_shapes(options.block_size, *shapes)
    check_known_length("inputs", inputs)
    if fam is not None:
        options.check_fam_length(fam.shape[1])
    if sink is not None and tuple(sink.shape) != (1, 1, inputs.shape[2]):
        raise ValueError(f"`sink` must have shape (1, 1, {inputs.shape[2]}). Received: sink of shape {sink.shape}.")


def check_stream_mask(inputs_mask, shape):
    """The mask of a chunk as a bool array of `shape`; all True for None."""
    if inputs_mask is None:
        return np.ones(shape, "bool")
    return check_ones_and_zeros("inputs_mask", inputs_mask, shape)


def check_ones_and_zeros(name, value, shape):
    """A mask whose values are known: an array of `shape` that holds 0 and 1, or bools, as a bool array."""
    array = ops.convert_to_numpy(value) if ops.is_tensor(value) else np.asarray(value)
    if array.shape != tuple(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}. Received: {name} of shape {array.shape}.")
    if array.dtype != bool:
        try:
            wrong = array[(array != 0) & (array != 1)]
        except TypeError:
            wrong = array.ravel()
        if wrong.size or array.dtype.kind not in "iuf":
            raise ValueError(
                f"`{name}` must hold 1 for real tokens and 0 for padding. Received: {name} of dtype {array.dtype} with "
                f"{wrong.ravel()[:1].tolist()}."
            )
    return array.astype("bool")


def check_token_ids(token_ids, vocabulary_size, name="token_ids"):
    """Rank 2, an integer dtype, and, where the values are known, inside the vocabulary.

    Args:
        token_ids: list, array or tensor, `[batch, length]`.
        vocabulary_size: int.
        name: str, the argument's name in messages.

    Returns:
        `token_ids`, as an array or tensor.
    """
    token_ids = check_ids_shape(token_ids, name)
    if is_concrete(token_ids) and 0 not in tuple(token_ids.shape):
        check_vocabulary(to_host(token_ids)[0], vocabulary_size, name)
    return token_ids


def check_ids_shape(token_ids, name="token_ids"):
    """What can be said of token ids without their values: rank 2 and an integer dtype.

    While Keras builds a model it asks for shapes alone. Under tensorflow's `MirroredStrategy` it then shows an average
    of ids over the devices, in float64.
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
    check_known_length(name, token_ids)
    dtype = token_ids.dtype
    dtype = dtype.name if hasattr(dtype, "kind") else keras.backend.standardize_dtype(dtype)
    if "int" not in str(dtype) and not isinstance(token_ids, keras.KerasTensor) and not in_symbolic_scope():
        raise TypeError(f"`{name}` must hold integers. Received: {name} of dtype {dtype}.")
    return token_ids


def check_vocabulary(values, vocabulary_size, name="token_ids"):
    """Refuses an array of ids of which one lies outside the vocabulary."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocabulary_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"`{name}` must lie in the vocabulary, 0 to {vocabulary_size - 1}. Received: {name} with {wrong}."
        )


def check_padding_mask(padding_mask, token_ids, name="padding_mask"):
    """A mask of the shape of the token ids, as far as both shapes are known; its values too, where it is an array."""
    if not hasattr(padding_mask, "shape"):
        padding_mask = np.asarray(padding_mask)
    expected, received = tuple(token_ids.shape), tuple(padding_mask.shape)
    if not _agree(expected, received):
        raise ValueError(
            f"`{name}` must have the shape of `token_ids`, {expected}. Received: {name} of shape {received}."
        )
    if isinstance(padding_mask, np.ndarray):
        check_ones_and_zeros(name, padding_mask, received)
    return padding_mask


def check_shape_of_ids(value, token_ids, name):
    """Ids beside other ids, of the same shape."""
    if tuple(value.shape) != tuple(token_ids.shape):
        raise ValueError(
            f"`{name}` must have the shape of `token_ids`, {tuple(token_ids.shape)}. Received: {name} of shape "
            f"{tuple(value.shape)}."
        )
    return value


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


def check_stateful_rows(x, batch_size, expected):
    """Rows of a batch that goes on: tensorflow's graphs know them too late for a clear word."""
    if not isinstance(x, dict) or "document_start" not in x:
        return
    rows = len(x["document_start"])
    if rows % expected or min(rows, batch_size or 32) != expected:
        raise ValueError(
            f"`batch_size` must be stateful_batch_size={expected} where `x` has 'document_start', and the "
            f"rows of `x` a multiple of it. Received: batch_size={batch_size}, x of {rows} rows."
        )


def check_stateful_batch(token_ids, batch_size, block_size):
    """A training batch of a stateful model: as many rows as it has, and whole blocks, where the state is carried on."""
    rows, length = token_ids.shape
    if not _agree((rows,), (batch_size,)) or (length is not None and length % block_size):
        raise ValueError(
            f"`token_ids` must have stateful_batch_size={batch_size} rows and a length that is a multiple of "
            f"block_size={block_size}. Received: token_ids of shape {tuple(token_ids.shape)}."
        )
