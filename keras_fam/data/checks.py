"""Checks of what only data takes: token ids from anywhere, and sizes of arrays before they are made."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_fam.checks import MAX_INT, check_integer, check_probabilities, check_weight, to_array

MAX_WORDS = 2**20
"""The most words of a filler sentence, and the most keys: a vocabulary that is made up need not be larger."""

MAX_WEIGHT = float(np.finfo("float32").max)


def check_ids(name: str, token_ids: Any, verb: str = "hold") -> np.ndarray:
    """Token ids of one text, from a list, an array or a tensor, whatever their type: the range is checked first.

    Args:
        name: str, the argument's name in messages.
        token_ids: integers `[length]`, 0 to `MAX_INT`; an empty list is fine.
        verb: str, what the argument does with ids, in messages.

    Returns:
        int32 array `[length]`.

    Raises:
        TypeError, ValueError: another type, rank or dtype; an id out of range.
    """
    array = to_array(name, token_ids)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must {verb} token ids of rank 1, [length]. Received: {name} of shape {array.shape} and type "
            f"{type(token_ids).__name__}."
        )
    return check_integers(name, token_ids, 0, MAX_INT, verb).astype("int32")


def check_integers(name: str, values: Any, low: int, high: int, verb: str = "hold") -> np.ndarray:
    """Integers of any shape in [low, high].

    Returns:
        array of the shape of `values`, of int64 or the integer dtype that it had.

    Raises:
        TypeError, ValueError: values that are no integers, or out of range.
    """
    array = to_array(name, values)
    if not array.size:
        return array.astype("int64")  # an empty list has no dtype of its own
    integers = array
    if array.dtype.kind not in "iu":
        # Python's integers need not fit in any dtype: NumPy makes floats or objects of the largest.
        integers = np.asarray(values, object) if isinstance(values, (list, tuple)) else array
        if integers.dtype != object or not all(map(_is_integer, integers.flat)):
            raise TypeError(
                f"`{name}` must {verb} integers. Received: {name} of type {type(values).__name__} "
                f"and dtype {array.dtype}."
            )
    smallest, largest = integers.min(), integers.max()
    if smallest < low or largest > high:
        raise ValueError(
            f"`{name}` must {verb} integers from {low} to {high}. Received: {name} with "
            f"{smallest if smallest < low else largest}."
        )
    return integers if integers.dtype.kind in "iu" else integers.astype("int64")


def _is_integer(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_size(**sizes: int) -> None:
    """Raises ValueError if an array of these sizes, each checked already, would hold more than `MAX_INT` tokens."""
    if math.prod(sizes.values()) > MAX_INT:
        product, received = " * ".join(f"`{name}`" for name in sizes), ", ".join(f"{k}={v}" for k, v in sizes.items())
        raise ValueError(f"{product} must be at most {MAX_INT} tokens, as one array holds. Received: {received}.")


def check_loss_weight(name: str, value: float) -> float:
    """Raises TypeError if `value` is no number, ValueError if it is negative, or not finite in float32."""
    if isinstance(value, (int, float, np.number)) and value > MAX_WEIGHT:
        raise ValueError(f"`{name}` must be finite in float32, at most {MAX_WEIGHT}. Received: {name}={value}.")
    return check_weight(name, value)


def check_rates(name: str, value: float | Sequence[float], count: int | None = None) -> np.ndarray:
    """See `keras_fam.checks.check_probabilities`; rows of different lengths are refused by name as well."""
    to_array(name, value)
    return check_probabilities(name, value, count)


def check_sizes(name: str, values: Sequence[int]) -> np.ndarray:
    """A sequence of integers from 1 to `MAX_INT`, at least one.

    Returns:
        int64 array `[count]`, sorted, each once.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)) or not len(values):
        raise ValueError(
            f"`{name}` must be a sequence of integers, at least one. Received: {name}={values!r} of type "
            f"{type(values).__name__}."
        )
    return np.unique([check_integer(f"{name}[{index}]", value, 1, MAX_INT) for index, value in enumerate(values)])


def check_iterable(name: str, values: Any) -> Iterable:
    """Raises TypeError if `values` cannot be iterated over."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(
            f"`{name}` must be iterable, and no text. Received: {name}={values!r} of type {type(values).__name__}."
        )
    return values
