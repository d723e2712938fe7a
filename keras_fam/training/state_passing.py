"""Random state passing: start a training step from the memory that the step before left (paper, section 3.1)."""

from typing import Any

import keras
from keras import ops

from keras_fam.checks import check_probability
from keras_fam.training.run_state import SavesRunState
from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class RandomStatePassing(SavesRunState, keras.layers.Layer):
    """Decides, once a training step for all layers and rows, whether FAM starts from the prompt or from the last step.

    Args:
        probability: float in [0, 1]. Kept in a variable, so that it can change during `fit`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: any tensor; its values are not used.
        training: bool.

    Returns:
        bool `[1]`, False outside training and in the first step, which has nothing to start from.

    Raises:
        TypeError, ValueError: `probability` is no number or outside [0, 1].

    Example:

    ```python
    passed = RandomStatePassing(0.8)(keras.random.normal((1, 8)), training=True)
    ```
    """

    def __init__(self, probability: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_probability = check_probability("random_state_passing", probability)
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, inputs_shape):
        self.probability = self.add_weight(
            name="probability",
            shape=(),
            initializer=keras.initializers.Constant(self.initial_probability),
            trainable=False,
            dtype="float32",
            autocast=False,
        )
        self.ready = self.add_weight(name="ready", shape=(), initializer="zeros", trainable=False, autocast=False)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if not training:
            return ops.zeros((1,), "bool")
        drawn = keras.random.uniform((1,), seed=self.seed_generator)
        passed = ops.logical_and(drawn < ops.cast(self.probability, drawn.dtype), self.ready > 0)
        self.ready.assign(ops.ones((), self.ready.dtype))
        return passed

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor((1,), dtype="bool")

    def get_config(self):
        return {**super().get_config(), "probability": self.initial_probability}
