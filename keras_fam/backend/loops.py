"""One sequential loop over blocks that every backend can differentiate and compile."""

import contextlib

import keras
from keras import ops, tree

UNROLLED = 16  # steps


def unrolls(length):
    """Whether each of `length` steps is a part of the program by itself, or all of them are one loop.

    A step of a loop takes tensorflow longer, and a program of many steps takes it minutes to compile: it unrolls up to
    `UNROLLED` steps, if `length` is an int and no tensor. jax always loops, and torch runs what Python runs.
    """
    backend = keras.config.backend()
    return backend == "torch" or (backend == "tensorflow" and isinstance(length, int) and length <= UNROLLED)


def scan(step, emit, carry, xs, length, axes=None):
    """`carry = step(carry, x)` over one axis of `xs`, with `emit(carry)` kept before and after every step.

    `keras.ops.scan` is not used: under tensorflow its gradient cannot be compiled by XLA. Where the steps are not
    unrolled (see `unrolls`), this is `lax.scan` or `tf.while_loop`, compiled once whatever the number of steps.

    Args:
        step: callable `(carry, x) -> carry`. Must not draw random numbers or assign variables.
        emit: callable, from a carry to a nested structure of tensors.
        carry: nested structure of tensors; keeps its shapes and dtypes.
        xs: dict of tensors or structures of tensors, or None. There may be more rows than `length`; with a dynamic
            length there must be at least one.
        length: int, or a scalar tensor (tensorflow with a dynamic sequence length).
        axes: dict, for each entry of `xs` the axis that is gone along, if it is not 0.

    Returns:
        `(carry, ys)`: the last carry, and all `length + 1` emissions stacked on a new leading axis.
    """
    xs, axes = xs or {}, axes or {}
    if not unrolls(length):
        # One structure of leading axes. XLA compiles a loop's body even where it never runs: leave it a row to look at.
        rows = length if isinstance(length, int) else ops.maximum(length, 1)
        xs = {name: _leading(x, axes.get(name, 0), rows) for name, x in xs.items()}
        loop = _jax_scan if keras.config.backend() == "jax" else _tensorflow_while
        return loop(step, emit, carry, xs, length)
    # The pieces are taken along the axis where it is: to move it would copy all of it.
    rows = {
        name: [ops.unstack(leaf, axis=axes.get(name, 0)) for leaf in tree.flatten(x)] if length else []
        for name, x in xs.items()
    }
    ys = [emit(carry)]
    for index in range(length):
        x = {name: tree.pack_sequence_as(xs[name], [leaf[index] for leaf in leaves]) for name, leaves in rows.items()}
        carry = step(carry, x)
        ys.append(emit(carry))
    return carry, tree.map_structure(lambda *leaves: ops.stack(leaves, axis=0), *ys)


def _leading(xs, axis, rows):
    return tree.map_structure(lambda x: ops.moveaxis(x, axis, 0)[:rows], xs)


def _jax_scan(step, emit, carry, xs, length):
    import jax

    def body(carry, x):
        carry = step(carry, x)
        return carry, emit(carry)

    first = emit(carry)
    carry, later = jax.lax.scan(body, carry, xs, length)
    return carry, tree.map_structure(lambda a, b: ops.concatenate([a[None], b], axis=0), first, later)


def _tensorflow_while(step, emit, carry, xs, length):
    import tensorflow as tf

    def rows(x):
        # Read from an array of rows: the gradient of a slice would be as large as all of `x`, in every step.
        return tf.TensorArray(x.dtype, size=tf.shape(x)[0], element_shape=x.shape[1:]).unstack(x)

    def write(arrays, index, carry):
        return [array.write(index, leaf) for array, leaf in zip(arrays, tree.flatten(emit(carry)))]

    def body(index, leaves, arrays):
        after = step(tree.pack_sequence_as(carry, leaves), tree.pack_sequence_as(xs, [x.read(index) for x in inputs]))
        return index + 1, tree.flatten(after), write(arrays, index + 1, after)

    inputs = [rows(x) for x in tree.flatten(xs)]
    first, leaves = emit(carry), tree.flatten(carry)
    arrays = [tf.TensorArray(leaf.dtype, size=length + 1, element_shape=leaf.shape) for leaf in tree.flatten(first)]
    _, leaves, arrays = tf.while_loop(
        lambda index, *_: index < length,
        body,
        (tf.constant(0), leaves, write(arrays, 0, carry)),
        shape_invariants=(tf.TensorShape([]), [leaf.shape for leaf in leaves], [tf.TensorShape(None)] * len(arrays)),
        maximum_iterations=tf.maximum(length, 1),  # XLA sizes the gradient's stacks by it.
    )
    return tree.pack_sequence_as(carry, leaves), tree.pack_sequence_as(first, [array.stack() for array in arrays])


def one_after(earlier):
    """Context manager: what is made inside is made after `earlier`, a list of tensors.

    tensorflow's graphs would start all blocks of a text at once, and hold the scores of all of them.
    """
    if keras.config.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies(earlier)
