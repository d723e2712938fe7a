"""Checks of what layers are called with: hidden states, FAM, start tokens and masks, by their shapes and dtypes."""

import numpy as np
from keras.src.backend import in_symbolic_scope

from keras_fam.checks import agree, check_known_length, check_ones_and_zeros, dtype_of
from keras_fam.types import MixedIn

CARRIED = (
    {"passed": ("bool", 1)},
    {"fresh": ("bool", 1), "started": ("bool", 1), "valid": ("bool", 3), "position": ("int32", 1)},
)
"""What `RandomStatePassing` and `CarriedState` make: names, dtypes and ranks."""


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
        if not fits or fam_shape[1] > block_size or not (fam_shape[0] == 1 or agree(fam_shape[:1], (batch,))):
            raise ValueError(
                f"`fam` must have shape [1 or batch, N, d] with batch={batch} and d={dim} of `inputs`, N at most "
                f"block_size={block_size}. Received: fam of shape {fam_shape}, inputs of shape {inputs_shape}."
            )
    if mask_shape is not None and not agree(tuple(mask_shape), inputs_shape[:2]):
        raise ValueError(
            f"`inputs_mask` must have shape [batch, length] of `inputs`, {inputs_shape[:2]}. Received: inputs_mask of "
            f"shape {tuple(mask_shape)}, inputs of shape {inputs_shape}."
        )


def check_layer_call(options, inputs, fam=None, inputs_mask=None, sink=None, carried=None):
    """The call arguments of a layer with memory: see `check_layer_shapes`; `sink` is `[1, 1, d]`."""
    for name, x in {"inputs": inputs, "fam": fam, "sink": sink}.items():
        if x is not None or name == "inputs":
            check_floats(name, x)
    if inputs_mask is not None:
        check_mask_dtype("inputs_mask", inputs_mask)
    shapes = (None if x is None else x.shape for x in (inputs, fam, inputs_mask))
    check_layer_shapes(options.block_size, *shapes)
    check_known_length("inputs", inputs)
    if fam is not None:
        options.check_fam_length(fam.shape[1])
    if sink is not None:
        check_sink(sink, inputs.shape[2])
    if carried is not None:
        check_carried(carried, inputs.shape[0])


def check_floats(name, x):
    """Refuses what is no tensor, and tensors of another dtype than a float; values are taken as they are."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"`{name}` must be a tensor. Received: {name} of type {type(x).__name__}.")
    if "float" not in dtype_of(x):
        raise TypeError(f"`{name}` must hold floats. Received: {name} of dtype {dtype_of(x)}.")
    return x


def check_states(name, x, dim):
    """Hidden states `[..., dim]`."""
    if not tuple(check_floats(name, x).shape) or not agree(tuple(x.shape)[-1:], (dim,)):
        raise ValueError(f"`{name}` must have shape [..., {dim}]. Received: {name} of shape {tuple(x.shape)}.")
    return x


def check_hidden(name, x, dim):
    """Hidden states `[batch, length, dim]` of at least one row; `dim` None is any."""
    shape = tuple(check_floats(name, x).shape)
    if len(shape) != 3 or shape[0] == 0 or not agree(shape[2:], (dim,)):
        raise ValueError(f"`{name}` must have shape [batch, length, {dim}]. Received: {name} of shape {shape}.")
    return x


def check_mask_dtype(name, mask):
    """A mask of bools or integers; tensorflow's `MirroredStrategy` shows averages in floats while a model is built."""
    if not hasattr(mask, "shape") or not hasattr(mask, "dtype"):
        raise TypeError(f"`{name}` must be a tensor. Received: {name} of type {type(mask).__name__}.")
    if dtype_of(mask) != "bool" and "int" not in dtype_of(mask) and not in_symbolic_scope():
        raise TypeError(f"`{name}` must hold bools or integers. Received: {name} of dtype {dtype_of(mask)}.")
    return mask


def check_sink(sink, dim):
    """The start token at a layer, float `[1, 1, d]`."""
    if tuple(check_floats("sink", sink).shape) != (1, 1, dim):
        raise ValueError(f"`sink` must have shape (1, 1, {dim}). Received: sink of shape {tuple(sink.shape)}.")
    return sink


def check_prompt(fam, dim, options):
    """The prompt at a layer, float `[1, N, d]`."""
    shape = tuple(check_floats("fam", fam).shape)
    if len(shape) != 3 or shape[::2] != (1, dim) or shape[1] > options.block_size:
        raise ValueError(
            f"`fam` must have shape [1, N, {dim}], N at most block_size={options.block_size}. Received: fam of shape "
            f"{shape}."
        )
    options.check_fam_length(shape[1])
    return fam


def check_carried(carried, batch):
    """What `CarriedState` or `RandomStatePassing` made, for `batch` rows."""
    wanted = "`carried` must be a dict of RandomStatePassing or CarriedState, or None"
    if not isinstance(carried, dict):
        raise TypeError(f"{wanted}. Received: carried of type {type(carried).__name__}.")
    if set(carried) not in map(set, CARRIED):
        raise ValueError(
            f"{wanted}, with {' or '.join(map(str, map(list, CARRIED)))}. Received: {list(carried)!r:.200}."
        )
    for name, x in carried.items():
        dtype, rank = next(kinds[name] for kinds in CARRIED if name in kinds)
        rows = 1 if name == "passed" else batch
        if not hasattr(x, "shape") or len(x.shape) != rank or not agree(x.shape[:1], (rows,)):
            shape = getattr(x, "shape", None)
            raise ValueError(
                f"{wanted}: expected carried[{name!r}] of rank {rank} and {rows} rows. Received: {type(x).__name__} of "
                f"shape {shape}."
            )
        if dtype_of(x) != dtype:
            raise TypeError(f"{wanted}: expected carried[{name!r}] of dtype {dtype}. Received: dtype {dtype_of(x)}.")


class TakesNumbers(MixedIn):
    """A layer that refuses, by name, arrays of what is no number: Keras makes tensors of all before `call`."""

    def __call__(self, *args, **kwargs):
        for name, x in {**dict(zip(("inputs", "fam", "inputs_mask"), args)), **kwargs}.items():
            for array in x.values() if isinstance(x, dict) else (x,):
                if isinstance(array, np.ndarray) and array.dtype.kind in "OSUMmc":
                    raise TypeError(f"`{name}` must hold numbers. Received: {name} of dtype {array.dtype}.")
        return super().__call__(*args, **kwargs)


def check_stream_mask(inputs_mask, shape):
    """The mask of a chunk as a bool array of `shape`; all True for None."""
    if inputs_mask is None:
        return np.ones(shape, "bool")
    return check_ones_and_zeros("inputs_mask", inputs_mask, shape)
