"""Loss and gradients by variable path, on whichever backend runs."""

import keras
from keras import ops


def loss_and_gradients(model, inputs, loss_of, training=False, how="eager"):
    """`loss_of(model(inputs))` and its gradient by every trainable variable's path.

    `how` tensorflow computes them: "eager", "graph" or "XLA".
    """
    variables = model.trainable_variables
    inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def stateless(values, others):
            outputs, _ = model.stateless_call(values, others, inputs, training=training)
            return loss_of(outputs)

        others = [v.value for v in model.non_trainable_variables]
        loss, gradients = jax.jit(jax.value_and_grad(stateless))([v.value for v in variables], others)
    elif backend == "tensorflow":
        import tensorflow as tf

        def compute(inputs):
            with tf.GradientTape() as tape:
                loss = loss_of(model(inputs, training=training))
            return loss, tape.gradient(loss, [v.value for v in variables])

        if how != "eager":
            compute = tf.function(compute, jit_compile=how == "XLA", autograph=False)
        loss, gradients = compute(inputs)
    else:
        import torch

        loss = loss_of(model(inputs, training=training))
        gradients = torch.autograd.grad(loss, [v.value for v in variables], allow_unused=True)
    arrays = {}
    for variable, gradient in zip(variables, gradients):
        if gradient is not None:
            arrays[variable.path] = ops.convert_to_numpy(ops.convert_to_tensor(gradient))
    return float(loss), arrays
