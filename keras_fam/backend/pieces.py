"""A sum over the rows of a long tensor, a piece of them at a time, and its gradient."""

import functools

import keras
from keras import ops

from keras_fam.backend.kept_gradients import noted


def sum_over_pieces(function, inputs, labels, weights, piece, groups=1, training=True):
    """`function` of one piece of rows after the other, added up.

    The gradient is computed with the sum, piece by piece, and kept: nothing is computed twice. That is possible because
    the sum is one number, so what comes to it from behind is one factor for all that it was made of.

    Rows of weight 0 are not computed: the others are moved together first, and pieces with none of them are left out.
    On jax and tensorflow pieces are a loop, so that no two of them are in memory at once.

    Args:
        function: callable from inputs `[g, p, d]`, labels `[g, p]` and weights `[g, p]` to two float32 scalars. The
            first is differentiated with respect to the inputs and to the Keras variables that `function` reads. It
            must not draw random numbers or assign variables, and must be 0 where all weights are.
        inputs: float `[n, d]`.
        labels: int `[n]`.
        weights: float32 `[n]`.
        piece: int, rows of a piece.
        groups: int, a divisor of n. Every piece has the same number of rows from each group: from each device, if the
            rows lie on several.
        training: bool. Whether the gradient will be wanted. jax and torch see that by themselves; tensorflow's own
            gradient of a sum that was made with False keeps what every piece computed.

    Returns:
        Two float32 scalars; the second has no gradient.
    """
    variables = _variables_read(function, inputs, labels, weights)
    # Gradients of weights in less than float32 are added up in float32.
    trained = [_value(v, keras.backend.result_type(v.dtype, "float32")) for v in variables if v.trainable]
    frozen = [_value(v, v.dtype) for v in variables if not v.trainable]

    def of_piece(trained, frozen, *rows):
        with _Values(variables, [*trained, *frozen]):
            return function(*rows)

    if keras.config.backend() == "torch":
        return _torch_sum(of_piece, trained, frozen, (inputs, labels, weights), piece)
    pieces, needed = _in_pieces((inputs, labels, weights), piece, groups)
    if keras.config.backend() == "jax":
        return _jax_sum(of_piece, trained, frozen, pieces, needed)
    return _tensorflow_sum(of_piece, trained, frozen, pieces, needed, training)


# === Variables ===


class _Values(keras.StatelessScope):
    """Inside, Keras variables have the values that are given. Which variables are read is noted."""

    def __init__(self, variables=(), values=()):
        super().__init__(zip(variables, values))
        self.read = {}

    def get_current_value(self, variable):
        self.read[id(variable)] = variable
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            return self.original_scope.get_current_value(variable)
        return value


def _variables_read(function, inputs, labels, weights):
    """The Keras variables that `function` reads, the trainable ones first. It is asked with a single row."""
    row = [x[None, :1] for x in (inputs, labels, weights)]
    with _Values() as scope:
        if keras.config.backend() == "jax":
            import jax

            jax.eval_shape(function, *row)
        else:
            function(*(ops.stop_gradient(x) for x in row))
    return sorted(scope.read.values(), key=lambda variable: not variable.trainable)


def _value(variable, dtype):
    value = ops.cast(variable, dtype)
    if keras.config.backend() != "tensorflow":
        return value
    import tensorflow as tf

    return tf.convert_to_tensor(value)  # `cast` may have handed the variable itself on.


# === Pieces ===


def _in_pieces(arrays, piece, groups):
    """Arrays `[n, ...]` as pieces `[pieces, g, p, ...]`, rows with a weight first, and how many pieces have such rows.

    What fills the last piece up is row 0 of a group, with weight 0.
    """
    rows = ops.shape(arrays[0])[0] // groups
    size = -(-piece // groups)
    size = max(1, min(size, rows)) if isinstance(rows, int) else ops.maximum(1, ops.minimum(size, rows))
    pieces = -(-rows // size)
    inputs, labels, weights = (ops.reshape(x, (groups, rows, *x.shape[1:])) for x in arrays)
    empty = ops.equal(weights, 0)
    order = ops.argsort(ops.cast(empty, "int32"), axis=1)
    order = ops.pad(order, ((0, 0), (0, pieces * size - rows)))

    def taken(x):
        x = ops.reshape(_rows_of_groups(x, order), (groups, pieces, size, *x.shape[2:]))
        return ops.swapaxes(x, 0, 1)

    longest = ops.max(ops.sum(ops.cast(ops.logical_not(empty), "int32"), axis=1))
    real = ops.reshape(ops.arange(pieces * size) < rows, (pieces, 1, size))
    return (taken(inputs), taken(labels), ops.where(real, taken(weights), 0)), (longest + size - 1) // size


def _rows_of_groups(x, order):
    """`x` `[g, n, ...]` at `order` `[g, m]`: `[g, m, ...]`."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(x, order, batch_dims=1)
    return ops.take_along_axis(x, ops.reshape(order, (*order.shape, *[1] * (len(x.shape) - 2))), axis=1)


# === Sums ===


def _times(factor, gradients):
    """`gradients`, each times a float32 scalar, in its own dtype."""
    return [ops.cast(ops.cast(x, "float32") * factor, x.dtype) for x in gradients]


def _torch_sum(of_piece, trained, frozen, arrays, piece):
    import torch

    inputs, labels, weights = arrays
    real = torch.nonzero(weights)[:, 0]
    real = real if len(real) else real.new_zeros(1)  # One row of weight 0, so that there is a gradient.
    indices = torch.split(real, piece)
    if torch.is_grad_enabled():
        return _torch_total().apply(of_piece, frozen, indices, labels, weights, inputs, *trained)
    made = [of_piece(trained, frozen, *(x[index][None] for x in arrays)) for index in indices]
    return sum(first for first, _ in made), sum(second for _, second in made)


@functools.cache  # A class of each step would be a ring of references that holds the step's tensors.
def _torch_total():
    import torch

    class Total(torch.autograd.Function):
        @staticmethod
        def forward(context, of_piece, frozen, indices, labels, weights, inputs, *trained):
            first, second = 0.0, 0.0
            of_inputs, of_trained = torch.zeros_like(inputs), [torch.zeros_like(x) for x in trained]
            trained = [x.detach().requires_grad_() for x in trained]
            for index in indices:
                rows, *rest = (x[index][None].detach() for x in (inputs, labels, weights))
                with torch.enable_grad():
                    made = of_piece(trained, frozen, rows.requires_grad_(), *rest)
                of_rows, *more = torch.autograd.grad(made[0], [rows, *trained], materialize_grads=True)
                of_inputs[index] = of_rows[0]
                for total, part in zip(of_trained, more):
                    total += part
                first, second = first + made[0].detach(), second + made[1].detach()
            context.save_for_backward(of_inputs, *of_trained)
            context.mark_non_differentiable(second)
            return first, second

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, of_first, of_second):
            return *[None] * 5, *_times(of_first, context.saved_tensors)

    return Total


def _jax_sum(of_piece, trained, frozen, pieces, needed):
    import jax
    from jax import lax
    from jax import numpy as jnp

    def at(pieces, index):
        return [lax.dynamic_index_in_dim(x, index, keepdims=False) for x in pieces]

    # Everything is an argument: what is closed over cannot be traced by an outer gradient.
    @jax.custom_vjp
    def total(inputs, trained, frozen, labels, weights, needed):
        def add(index, sums):
            made = of_piece(trained, frozen, *at((inputs, labels, weights), index))
            return sums[0] + made[0], sums[1] + made[1]

        return lax.fori_loop(0, needed, add, (jnp.zeros(()), jnp.zeros(())))

    def forward(inputs, trained, frozen, labels, weights, needed):
        def add(index, carry):
            first, second, of_inputs, of_trained = carry
            piece, *rest = at((inputs, labels, weights), index)
            made, pull_back, right = jax.vjp(
                lambda piece, trained: of_piece(trained, frozen, piece, *rest), piece, trained, has_aux=True
            )
            of_piece_inputs, more = pull_back(jnp.ones_like(made))
            of_inputs = lax.dynamic_update_index_in_dim(of_inputs, of_piece_inputs, index, 0)
            return first + made, second + right, of_inputs, [a + b for a, b in zip(of_trained, more)]

        zeros = jnp.zeros_like(inputs), [jnp.zeros_like(value) for value in trained]
        first, second, *gradients = lax.fori_loop(0, needed, add, (jnp.zeros(()), jnp.zeros(()), *zeros))
        return (first, second), gradients

    def backward(gradients, of_sums):
        of_inputs, of_trained = gradients
        return *_times(of_sums[0], [of_inputs]), _times(of_sums[0], of_trained), None, None, None, None

    total.defvjp(forward, backward)
    inputs, labels, weights = pieces
    return total(inputs, trained, frozen, labels, weights, needed)


def _tensorflow_sum(of_piece, trained, frozen, pieces, needed, training):
    import tensorflow as tf

    inputs, labels, weights = pieces
    loop = functools.partial(tf.while_loop, lambda index, *_: index < needed, parallel_iterations=1)

    def add(index, first, second):
        made = of_piece(trained, frozen, inputs[index], labels[index], weights[index])
        return index + 1, first + made[0], second + made[1]

    if not training:
        return loop(add, (0, 0.0, 0.0))[1:]

    @tf.custom_gradient
    def total(inputs, *trained):
        def add(index, first, second, of_inputs, *of_trained):
            piece = inputs[index]
            with tf.GradientTape() as tape:
                tape.watch([piece, *trained])
                made, right = of_piece(trained, frozen, piece, labels[index], weights[index])
            zero = tf.UnconnectedGradients.ZERO
            of_piece_inputs, *more = tape.gradient(made, [piece, *trained], unconnected_gradients=zero)
            more = (a + b for a, b in zip(of_trained, more))
            return index + 1, first + made, second + right, of_inputs.write(index, of_piece_inputs), *more

        # What is not written is 0.
        rows = tf.TensorArray(inputs.dtype, tf.shape(inputs)[0], element_shape=inputs.shape[1:])
        _, first, second, of_inputs, *of_trained = loop(add, (0, 0.0, 0.0, rows, *map(tf.zeros_like, trained)))
        gradients = [of_inputs.stack(), *of_trained]
        return (first, second), lambda of_first, of_second: _times(of_first, gradients)

    return noted(total(inputs, *trained))
