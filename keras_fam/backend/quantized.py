"""What a quantized model needs to be trained."""

import keras


def keep_gradient(embedding: keras.layers.Layer) -> None:
    """Lets the gradient through the quantized head of `embedding`: its weights stay rounded, what it is given does not.

    Keras (3.15) rounds hidden states before an int8 or int4 head and gives that no gradient, as it does in all other
    layers. LoRA below the head would be trained by noise. `tests/test_quantized.py` says when Keras has mended it.
    """
    if getattr(embedding, "inputs_quantizer", None) is not None:
        embedding.inputs_quantizer = None
