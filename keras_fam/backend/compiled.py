"""Functions of a model's variables, compiled where the backend compiles."""

import keras


def compile_inference(model, function):
    """`function(*tensors)`, without gradients, compiled once per shape and per value of its keyword arguments.

    Args:
        model: `keras.Model` whose variables `function` reads; it must assign none of them.
        function: callable of nested structures of tensors, with hashable keyword arguments.

    Returns:
        A callable with the same arguments. It never writes into the tensors it is given.
    """
    backend = keras.config.backend()
    if backend == "jax":
        return _compile_jax(model, function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    import torch

    return torch.no_grad()(function)


def _compile_jax(model, function):
    import jax

    def stateless(values, arguments, options):
        mapping = zip(model.variables, values)
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments, **dict(options))

    compiled = jax.jit(stateless, static_argnums=2)

    def call(*arguments, **options):
        values = [variable.value for variable in model.variables]
        return compiled(values, arguments, tuple(sorted(options.items())))

    return call
