"""Argument checks: every message names the argument, what was expected and what was received."""

import os

import keras
import numpy as np
from keras import ops
from keras.src.backend import in_symbolic_scope

from keras_fam.backend.buffers import is_concrete, to_host

MAX_INT = 2**31 - 1
"""The largest size, token id and place: they are counted in int32."""


def check_integer(name, value, minimum, maximum=MAX_INT, maximum_reason=""):
    """Raises TypeError if `value` is no integer, ValueError if it lies outside [minimum, maximum]; None is no limit."""
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


def check_share(name, value):
    """Raises TypeError if `value` is no number, ValueError if it is not between 0 and 1."""
    _check_number(name, value)
    if not 0.0 < value < 1.0:
        raise ValueError(f"`{name}` must be above 0 and below 1. Received: {name}={value}.")
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
    """Raises TypeError if `value` is no number, ValueError if it is not above 0 or not finite."""
    _check_number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be above 0 and finite. Received: {name}={value}.")
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
    try:
        float(value)
    except OverflowError as error:  # Python's integers have no end.
        raise ValueError(f"`{name}` must be a number that a float holds. Received: {name}={value}.") from error


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
    if not os.fspath(value):  # It would stand for the current folder.
        raise ValueError(f"`{name}` must not be empty. Received: {name}={value!r}.")
    return value


def check_choice(name, value, choices):
    """Raises TypeError if `value` is no str, ValueError if it is none of the choices."""
    wanted = f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}"
    if not isinstance(value, str):
        raise TypeError(f"{wanted} of type {type(value).__name__}.")
    if value not in choices:
        raise ValueError(f"{wanted}.")
    return value


def check_name(name, value):
    """The name of a layer or model, as Keras takes it: None for one that Keras makes up."""
    if value is not None and (not isinstance(value, str) or "/" in value):
        raise ValueError(
            f"`{name}` must be a str without '/', or None. Received: {name}={value!r} of type {type(value).__name__}."
        )
    return value


def check_function(name, value):
    """Raises TypeError if `value` is neither None nor a function, or another object that can be called."""
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise TypeError(
            f"`{name}` must be callable or None. Received: {name}={value!r} of type {type(value).__name__}."
        )
    return value


def check_dtype(name, value):
    """A dtype or dtype policy of Keras, or None, that computes in floats."""
    try:
        policy = keras.dtype_policies.get(value)
        computes = policy.compute_dtype
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"`{name}` must be a dtype policy of Keras. Received: {name}={value!r} ({error}).") from error
    if isinstance(value, type) or "float" not in computes:
        raise ValueError(f"`{name}` must be a dtype policy that computes in floats. Received: {name}={value!r}.")
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


def check_model_arguments(arguments):
    """What every model and preset takes by keyword, as far as it is given: flags, a name, a dtype."""
    for name in ("load_weights", "compile", "trainable"):
        check_flag(name, arguments.get(name, True))
    check_name("name", arguments.get("name"))
    check_dtype("dtype", arguments.get("dtype"))


def check_spans(name, value):
    """A number above 0, or a sequence of them: a float, or a tuple of floats."""
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) == 0 or (isinstance(value, np.ndarray) and value.ndim != 1):
            raise ValueError(f"`{name}` must be a number or a flat sequence of numbers. Received: {name}={value!r}.")
        return tuple(float(check_positive(name, each)) for each in value)
    return float(check_positive(name, value))


def check_initializer(name, value):
    """A Keras initializer, by name, configuration or object."""
    try:
        initializer = keras.initializers.get(value)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"`{name}` must be a Keras initializer. Received: {name}={value!r} ({error}).") from error
    if not isinstance(initializer, keras.initializers.Initializer):
        raise TypeError(f"`{name}` must be a Keras initializer. Received: {name}={value!r}.")
    return initializer


def agree(left, right):
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


def to_array(name, values):
    """The NumPy array of a list, an array or a tensor.

    Raises:
        ValueError: rows of different lengths, or a tensor without values.
    """
    try:
        return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a list, an array or a tensor. Received: {name} of type {type(values).__name__}: {error}"
        ) from error


def check_ones_and_zeros(name, value, shape):
    """A mask whose values are known: an array of `shape` that holds 0 and 1, or bools, as a bool array."""
    array = to_array(name, value)
    if array.shape != tuple(shape):
        raise ValueError(
            f"`{name}` must have shape {tuple(shape)}. Received: {name} of shape {array.shape} and type "
            f"{type(value).__name__}."
        )
    if array.dtype != bool:
        try:
            wrong = array[(array != 0) & (array != 1)]
        except TypeError:  # Objects that do not compare: refused with what they are.
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


def dtype_of(x):
    """The name of the dtype of an array or tensor."""
    return str(x.dtype.name if hasattr(x.dtype, "kind") else keras.backend.standardize_dtype(x.dtype))


def check_ids_shape(token_ids, name="token_ids"):
    """What can be said of token ids without their values: rank 2 and an integer dtype.

    While Keras builds a model it asks for shapes alone. Under tensorflow's `MirroredStrategy` it then shows an average
    of ids over the devices, in float64.
    """
    given = type(token_ids).__name__
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
            f"`{name}` must have rank 2, [batch, length]. Received: {name} of shape {tuple(token_ids.shape)} and type "
            f"{given}."
        )
    check_known_length(name, token_ids)
    dtype = dtype_of(token_ids)
    if "int" not in dtype and not isinstance(token_ids, keras.KerasTensor) and not in_symbolic_scope():
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
    given = type(padding_mask).__name__
    if not hasattr(padding_mask, "shape"):
        padding_mask = to_array(name, padding_mask)
    expected, received = tuple(token_ids.shape), tuple(padding_mask.shape)
    if not agree(expected, received):
        raise ValueError(
            f"`{name}` must have the shape of `token_ids`, {expected}. Received: {name} of shape {received} and type "
            f"{given}."
        )
    # Of tensors only what should be neither integers nor bools is looked at: it would stop the device.
    plain = dtype_of(padding_mask) == "bool" or "int" in dtype_of(padding_mask)
    if isinstance(padding_mask, np.ndarray) or (not plain and is_concrete(padding_mask)):
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


def check_sequence(name, token_ids, vocabulary_size):
    """Token ids of one text: rank 1, an integer dtype, inside the vocabulary.

    Returns:
        int32 array `[length]`.
    """
    token_ids = to_array(name, token_ids)
    if token_ids.ndim != 1:
        raise ValueError(f"`{name}` must have rank 1, [length]. Received: {name} of shape {token_ids.shape}.")
    if token_ids.size and token_ids.dtype.kind not in "iu":  # an empty list has no dtype of its own
        raise TypeError(f"`{name}` must hold integers. Received: {name} of dtype {token_ids.dtype}.")
    if token_ids.size:
        check_vocabulary(token_ids, vocabulary_size, name)
    return token_ids.astype("int32")


def check_document_start(document_start, token_ids):
    """`document_start`, `[batch]`, beside token ids, as far as both shapes are known."""
    if not hasattr(document_start, "shape"):
        document_start = to_array("document_start", document_start)
    expected, received = tuple(token_ids.shape[:1]), tuple(document_start.shape)
    if not agree(expected, received):
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
    if not agree((rows,), (batch_size,)) or (length is not None and length % block_size):
        raise ValueError(
            f"`token_ids` must have stateful_batch_size={batch_size} rows and a length that is a multiple of "
            f"block_size={block_size}. Received: token_ids of shape {tuple(token_ids.shape)}."
        )
