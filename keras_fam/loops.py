"""One sequential loop over blocks that every backend can differentiate and compile."""

import keras
from keras import ops, tree


def scan(step, carry, xs, length):
    """`carry, y = step(carry, x)` over the leading axis of `xs`; returns the last carry and the stacked `y`.

    `keras.ops.scan` is not used: under tensorflow its gradient cannot be compiled by XLA. On jax this is `lax.scan`,
    compiled once whatever the number of steps; torch runs a Python loop; tensorflow unrolls a static number of steps
    and runs a dynamic one as a `tf.while_loop`.

    Args:
        step: callable. Must not draw random numbers or assign variables.
        carry: nested structure of tensors; keeps its shapes and dtypes.
        xs: nested structure of tensors `[length, ...]`.
        length: int, or a scalar tensor (tensorflow with a dynamic sequence length).

    Returns:
        `(carry, ys)`, with ys `[length, ...]`, or None for a static length of 0.
    """
    if isinstance(length, int) and length == 0:
        return carry, None
    if keras.config.backend() == "jax":
        import jax

        return jax.lax.scan(step, carry, xs)
    if not isinstance(length, int):
        return _tensorflow_while(step, carry, xs, length)
    slices = [ops.unstack(x, num=length, axis=0) for x in tree.flatten(xs)]
    ys = []
    for index in range(length):
        carry, y = step(carry, tree.pack_sequence_as(xs, [x[index] for x in slices]))
        ys.append(y)
    return carry, tree.map_structure(lambda *leaves: ops.stack(leaves, axis=0), *ys)


def _tensorflow_while(step, carry, xs, length):
    import tensorflow as tf

    # The structure of one step's output, without running it.
    example = tree.map_structure(lambda x: tf.zeros_like(x[0]), xs)
    _, y = step(carry, example)
    arrays = [tf.TensorArray(leaf.dtype, size=length, element_shape=leaf.shape) for leaf in tree.flatten(y)]
    carry_leaves = tree.flatten(carry)

    def body(index, leaves, arrays):
        new_carry, new_y = step(tree.pack_sequence_as(carry, leaves), tree.map_structure(lambda x: x[index], xs))
        arrays = [array.write(index, leaf) for array, leaf in zip(arrays, tree.flatten(new_y))]
        return index + 1, tree.flatten(new_carry), arrays

    shapes = [leaf.shape for leaf in carry_leaves]
    _, leaves, arrays = tf.while_loop(
        lambda index, *_: index < length,
        body,
        (tf.constant(0), carry_leaves, arrays),
        shape_invariants=(tf.TensorShape([]), shapes, [tf.TensorShape(None)] * len(arrays)),
        maximum_iterations=length,
    )
    ys = tree.pack_sequence_as(y, [array.stack() for array in arrays])
    return tree.pack_sequence_as(carry, leaves), ys
