"""Rotary layers of stock models, in float32, and in a form that can be saved."""

import keras
from keras_hub.src.models.llama.llama_rotary_embedding import LlamaRotaryEmbedding

_ARGUMENTS = (
    "max_wavelength",
    "position_scaling_factor",
    "frequency_adjustment_factor",
    "low_freq_factor",
    "high_freq_factor",
    "pretraining_sequence_length",
)


@keras.saving.register_keras_serializable(package="keras_fam")
class SavedLlamaRotary(LlamaRotaryEmbedding):
    """KerasHub's rotary layer of Llama with a configuration that its constructor takes.

    KerasHub's own has arguments by other names than the constructor (keras-hub 0.32).
    """

    def get_config(self):
        return {**keras.layers.Layer.get_config(self), **{name: getattr(self, name) for name in _ARGUMENTS}}


def in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A stock rotary layer with angles in float32, whatever the stock layer computes in."""
    if isinstance(layer, LlamaRotaryEmbedding):
        return SavedLlamaRotary(**{name: getattr(layer, name) for name in _ARGUMENTS}, dtype="float32")
    return type(layer).from_config({**layer.get_config(), "dtype": "float32"})
