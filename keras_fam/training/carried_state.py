"""Stateful training: which rows of a batch go on with the text of the batch before, and from where."""

from typing import Any

import keras
from keras import ops

from keras_fam.backend.inside import Inside
from keras_fam.checks import check_integer
from keras_fam.training.run_state import SavesRunState
from keras_fam.types import Tensor

# Inside, rows go on from the batch before outside training too.
evaluation_carries = Inside()


def carries_on(training: bool | None) -> bool:
    """Whether a call goes on from the state that the last one left, and leaves its own."""
    return bool(training) or bool(evaluation_carries.value)


@keras.saving.register_keras_serializable(package="keras_fam")
class CarriedState(SavesRunState, keras.layers.Layer):
    """What all decoder blocks share of the state that a training step leaves for the next one, row by row.

    The paper calls training on texts that go on from step to step ideal, and names what it takes: batches whose row i
    goes on where row i of the batch before ended, and a reset where a text begins. Outside training every row begins
    anew, and nothing is kept, but for `evaluate` on such batches: see `CarriesInEvaluation`.

    Args:
        batch_size: int, rows of every batch.
        block_size: int, B.
        memory_segments: int, m.
        position_period: int, positions are counted modulo it.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        padding_mask: `[batch, length]`, 1 for real tokens, length a multiple of B.
        document_start: int `[batch]`, 1 for rows that begin a text.
        training: bool.

    Returns:
        dict of `"fresh"`, bool `[batch]`, rows whose FAM is the prompt; `"started"`, bool `[batch]`, rows whose FAM
        carries context; `"valid"`, bool `[batch, m, B]`, real tokens in the memory segments; `"position"`, int32
        `[batch]`, how many places went before.

    Example:

    ```python
    carried = CarriedState(batch_size=2, block_size=4, memory_segments=1, position_period=8)
    rows = carried(np.ones((2, 8)), np.ones((2,)), training=True)
    ```
    """

    def __init__(
        self, batch_size: int, block_size: int, memory_segments: int, position_period: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.block_size = check_integer("block_size", block_size, 1)
        self.memory_segments = check_integer("memory_segments", memory_segments, 0)
        self.position_period = check_integer("position_period", position_period, 1)

    def build(self, padding_mask_shape, document_start_shape=None):
        def state(name, *shape):
            return self.add_weight(
                name=name, shape=(self.batch_size, *shape), initializer="zeros", trainable=False, dtype="int32"
            )

        self.started, self.position = state("started"), state("position")
        if self.memory_segments:
            self.valid = state("valid", self.memory_segments, self.block_size)

    def call(self, padding_mask: Tensor, document_start: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        rows, length = ops.shape(padding_mask)
        segments = (rows, self.memory_segments, self.block_size)
        if not carries_on(training):
            nothing = ops.zeros((rows,), "bool")
            position = ops.zeros((rows,), "int32")
            return dict(fresh=~nothing, started=nothing, valid=ops.zeros(segments, "bool"), position=position)
        fresh = ops.cast(document_start, "bool")
        goes_on = ops.logical_not(fresh)
        started = ops.logical_and(ops.cast(self.started, "bool"), goes_on)
        position = ops.where(goes_on, ops.convert_to_tensor(self.position), 0)
        real = ops.reshape(ops.cast(padding_mask, "bool"), (rows, length // self.block_size, self.block_size))
        self.started.assign(ops.cast(ops.logical_or(started, ops.any(real, axis=(1, 2))), "int32"))
        self.position.assign((position + length) % self.position_period)
        if self.memory_segments:
            valid = ops.logical_and(ops.cast(self.valid, "bool"), goes_on[:, None, None])
            later = ops.concatenate([valid, real], axis=1)
            self.valid.assign(ops.cast(later[:, ops.shape(later)[1] - self.memory_segments :], "int32"))
        else:
            valid = ops.zeros(segments, "bool")
        # What was never started has left nothing: its memory is the prompt.
        return dict(fresh=ops.logical_not(started), started=started, valid=valid, position=position)

    def restart(self) -> None:
        """Forgets: the next batch begins anew in every row. What layers have kept is then not read."""
        for variable in self.non_trainable_variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def compute_output_spec(self, padding_mask, document_start, training=None):
        rows = padding_mask.shape[0]
        flags = {name: keras.KerasTensor((rows,), "bool") for name in ("fresh", "started")}
        valid = keras.KerasTensor((rows, self.memory_segments, self.block_size), "bool")
        return {**flags, "valid": valid, "position": keras.KerasTensor((rows,), "int32")}

    def get_config(self):
        return {
            **super().get_config(),
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "memory_segments": self.memory_segments,
            "position_period": self.position_period,
        }
