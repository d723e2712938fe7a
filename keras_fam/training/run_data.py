"""What `fit`, `evaluate` and `predict` are given to read: arrays are checked whole, before anything is computed."""

from typing import Any

import numpy as np
from keras import ops

from keras_fam.checks import check_ones_and_zeros, check_token_ids, check_vocabulary, to_array
from keras_fam.types import Data

LESSON = ("x", "y", "sample_weight")
VALIDATION = tuple(f"validation_data[{place}]" for place in range(3))


def check_lesson(lm: Any, names: tuple[str, ...], x: Data, y: Data = None, sample_weight: Data = None) -> None:
    """Raises TypeError or ValueError for data of no kind, and for ids, targets or weights that cannot be learned from.

    Texts are left to the preprocessor, and the batches of a dataset to `fit`, which reads one after the other.

    Args:
        lm: `keras_fam.FAMCausalLM`.
        names: what messages call the three, or `x` alone, where no more is learned.
        x: what is read: a dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, 0 and 1 of that shape; or
            texts, or a dataset.
        y: int `[batch, length]` or `[batch, length, 1]`, targets; None where the loss needs none.
        sample_weight: `[batch, length]`, `[batch, length, 1]`, `[batch]` or `[batch, 1]`, finite; or None.
    """
    check_kind(names[0], x)
    if not isinstance(x, dict):
        if lm.preprocessor is None and (isinstance(x, (list, tuple, np.ndarray)) or ops.is_tensor(x)):
            raise TypeError(
                f"`{names[0]}` must be a dict of 'token_ids' and 'padding_mask' for a model without a preprocessor. "
                f"Received: {names[0]} of type {type(x).__name__}."
            )
        return
    if not {"token_ids", "padding_mask"} <= set(x):
        raise TypeError(
            f"`{names[0]}` must be a dict of 'token_ids' and 'padding_mask'. Received: {names[0]} with keys {list(x)}."
        )
    ids, mask = (f"{names[0]}['{part}']" for part in ("token_ids", "padding_mask"))
    token_ids = check_token_ids(to_array(ids, x["token_ids"]), lm.backbone.vocabulary_size, ids)
    check_ones_and_zeros(mask, x["padding_mask"], token_ids.shape)
    if len(names) == 1:
        return
    if lm.trains_in_pieces:  # Other losses have targets of their own.
        _check_targets(names[1], y, token_ids.shape, lm.backbone.vocabulary_size)
    if sample_weight is not None:
        _check_weights(names[2], sample_weight, token_ids.shape)


def check_kind(name: str, value: Any) -> None:
    """Raises TypeError if nothing can be read from `value`: it has no rows and is no dataset."""
    readable = hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    if isinstance(value, (str, bytes, type)) or not readable or getattr(value, "shape", (0,)) == ():
        raise TypeError(
            f"`{name}` must be texts, a dict of 'token_ids' and 'padding_mask', or batches of them. Received: "
            f"{name}={value!r} of type {type(value).__name__}."
        )


def _check_targets(name, y, shape, vocabulary_size):
    if y is None:
        raise ValueError(
            f"`{name}` must be given: the token ids that follow, int [batch, length]. Received: {name}=None."
        )
    given, y = type(y).__name__, to_array(name, y)
    if y.shape not in (shape, (*shape, 1)):
        raise ValueError(
            f"`{name}` must have the shape [batch, length], {shape}. Received: {name} of shape {y.shape} and type "
            f"{given}."
        )
    if y.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must hold integers. Received: {name} of dtype {y.dtype}.")
    if y.size:
        check_vocabulary(y, vocabulary_size, name)


def _check_weights(name, weights, shape):
    weights = to_array(name, weights)
    numbers = weights.dtype.kind in "biu" or "float" in weights.dtype.name  # bfloat16 is of no kind of NumPy's own
    if not numbers or not np.isfinite(weights).all():
        raise ValueError(
            f"`{name}` must hold finite numbers. Received: {name} of dtype {weights.dtype}: {weights!r:.200}."
        )
    rows, length = shape
    if weights.shape not in ((rows,), (rows, 1), (rows, length), (rows, length, 1)):
        raise ValueError(
            f"`{name}` must have the shape [batch, length] or [batch], here {shape}. Received: {name} of shape "
            f"{weights.shape}."
        )
