"""Work on several devices."""

import keras

from keras_fam.types import Tensor


def rows_over_devices(x: Tensor) -> Tensor:
    """`x` `[b, ...]` with its rows over the data dimension of `keras.distribution`, inside a compiled function.

    Keras lays out the batches of `fit`, and leaves those of `generate` whole. Without this every device would read all
    streams. What is computed from `x`, such as a stream's state, follows.

    Args:
        x: tensor with the batch on axis 0.

    Returns:
        The same values. Nothing changes without a distribution, or where rows do not divide evenly.
    """
    distribution = keras.distribution.distribution()
    if keras.config.backend() != "jax" or distribution is None or x.shape[0] % distribution.num_model_replicas:
        return x
    return keras.distribution.distribute_tensor(x, distribution.get_data_layout(x.shape))


def data_replicas(rows: int | None) -> int:
    """Over how many devices jax spreads a batch of so many rows; 1 without a distribution, or if they do not divide."""
    distribution = keras.distribution.distribution()
    if keras.config.backend() != "jax" or distribution is None or rows is None:
        return 1
    return distribution.num_model_replicas if rows % distribution.num_model_replicas == 0 else 1


def strategy_replicas(model: keras.Model) -> int:
    """Over how many devices a `tf.distribute` strategy spreads each batch of `fit`; 1 without one."""
    return model.distribute_strategy.num_replicas_in_sync if keras.config.backend() == "tensorflow" else 1


def sum_over_replicas(x: Tensor) -> Tensor:
    """The sum of a scalar over the replicas of a `tf.distribute` strategy; `x` itself without one. No gradient."""
    if keras.config.backend() != "tensorflow":
        return x
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
