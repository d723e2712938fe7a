"""Activations of gated feed-forwards, as KerasHub's layers compute them, in a form that can be saved."""

import keras

from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam", name="gelu_approximate")
def gelu(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh."""
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="keras_fam", name="silu_in_float32")
def silu(x: Tensor) -> Tensor:
    """SiLU computed in float32."""
    return keras.ops.cast(keras.ops.silu(keras.ops.cast(x, "float32")), x.dtype)
