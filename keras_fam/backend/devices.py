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
