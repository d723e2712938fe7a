"""Places of a text of any length in a table of learned positions."""

from typing import Any

import keras
from keras import ops

from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class LearnedPlaces(keras.layers.Layer):
    """Rows of a learned position table: place p reads row `(p + offset) mod table_length`.

    Args:
        table_length: int, rows of the table.
        random_offset: bool. In training each row of the batch is shifted, by 0 half of the time, else uniformly.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, length, ...]`; only its shape is used.
        start: int32 `[batch]`, the place of each row's first token, or None for 0.
        training: bool.

    Returns:
        int32 `[1, length]`, or `[batch, length]` with `random_offset` or `start`.

    Example:

    ```python
    places = LearnedPlaces(table_length=16)(keras.random.normal((2, 20, 8)))  # 0 .. 15, 0 .. 3
    ```
    """

    def __init__(self, table_length: int, random_offset: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table_length = table_length
        self.random_offset = random_offset
        if random_offset:
            self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs: Tensor, start: Tensor | None = None, training: bool | None = None) -> Tensor:
        shape = ops.shape(inputs)
        places = ops.arange(shape[1], dtype="int32")[None]
        if start is not None:
            places = places + start[:, None]
        if self.random_offset:
            places = ops.broadcast_to(places, shape[:2])
        if self.random_offset and training:
            offset = keras.random.randint((shape[0], 1), 0, self.table_length, seed=self.seed_generator)
            shifted = keras.random.uniform((shape[0], 1), seed=self.seed_generator) < 0.5
            places = places + ops.where(shifted, ops.cast(offset, "int32"), 0)
        return places % self.table_length

    def compute_output_spec(self, inputs, start=None, training=None):
        rows = inputs.shape[0] if self.random_offset or start is not None else 1
        return keras.KerasTensor((rows, inputs.shape[1]), dtype="int32")

    def get_config(self):
        return {**super().get_config(), "table_length": self.table_length, "random_offset": self.random_offset}
