"""Samplers for tests."""

import keras
import keras_hub


class Script(keras_hub.samplers.GreedySampler):
    """Draws given tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.script = iter(tokens)

    def get_next_token(self, probabilities):
        return keras.ops.convert_to_tensor([next(self.script)], "int32")
