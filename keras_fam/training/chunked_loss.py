"""Cross entropy of a big vocabulary: the logits of some positions at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_fam.backend.pieces import sum_over_pieces
from keras_fam.checks import check_integer, check_name
from keras_fam.types import Tensor


class LossSums(NamedTuple):
    """Sums over all positions, each times its weight: float32 scalars. Divided by `weight` they are means."""

    loss: Tensor
    weight: Tensor
    correct: Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class ChunkedCrossentropy(keras.losses.Loss):
    """Cross entropy per real token, of `FAMCausalLM` piece by piece: the loss of big vocabularies and long texts.

    The logits of a text are its length times the vocabulary: 8,192 tokens of Gemma 3 take 8 GB in float32, and as much
    again in the gradient. `FAMCausalLM` compiled with this loss makes the logits of `piece` positions at a time, and
    their gradient before those of the next. Loss and gradient are those of
    `keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")`: the sum of the
    weighted losses, divided by the sum of the weights, so padding counts for nothing. Given to another model, it is
    that loss.

    Args:
        piece: int >= 1. Positions, counted over batch and length, whose logits exist at once.
        name: str.

    Raises:
        TypeError, ValueError: `piece` is no integer or below 1.

    Example:

    ```python
    lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en")
    lm.compile(loss=keras_fam.ChunkedCrossentropy(piece=512))  # loss="chunked_crossentropy": pieces of 1,024.
    ```
    """

    def __init__(self, piece: int = 1024, name: str = "chunked_crossentropy"):
        self.piece = check_integer("piece", piece, 1)
        super().__init__(name=check_name("name", name), reduction="mean_with_sample_weight")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of each place, for a model that is no `FAMCausalLM`.

        Args:
            y_true: int `[batch, length]`, targets.
            y_pred: float `[batch, length, vocabulary]`, logits.

        Returns:
            float `[batch, length]`, nats.
        """
        return ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name, for saving."""
        return {"piece": self.piece, "name": self.name}


def chunked_crossentropy(
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    piece: int,
    groups: int = 1,
    training: bool = True,
) -> LossSums:
    """The sums of cross entropy and of right guesses over all positions, without the logits of all of them.

    Args:
        hidden: float `[batch, length, d]`.
        targets: int `[batch, length]`.
        weights: float `[batch, length]`. Positions of weight 0 are not computed.
        logits_of: callable from `[b, t, d]` to `[b, t, vocabulary]`, such as `FAMBackbone.logits`.
        piece: int, positions whose logits exist at once.
        groups: int, devices that hold equal parts of the batch.
        training: bool, whether the gradient will be wanted.

    Returns:
        `LossSums`; `loss` has gradients with respect to `hidden` and to the variables that `logits_of` reads.
    """

    def of_piece(hidden, targets, weights):
        logits = logits_of(hidden)
        logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
        if groups == 1:  # A matrix: torch's cross entropy of three axes is many times slower.
            logits, targets, weights = logits[0], targets[0], weights[0]
        losses = ops.cast(ops.sparse_categorical_crossentropy(targets, logits, from_logits=True), "float32")
        correct = ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), targets), "float32")
        return ops.sum(losses * weights), ops.sum(correct * weights)

    weights = ops.reshape(ops.cast(weights, "float32"), (-1,))
    # Positions that count for nothing may have targets that no vocabulary has.
    targets = ops.where(ops.equal(weights, 0), 0, ops.reshape(ops.cast(targets, "int32"), (-1,)))
    hidden = ops.reshape(hidden, (-1, hidden.shape[-1]))
    weight = ops.sum(weights)
    unit = _unit(weights, weight)
    loss, correct = sum_over_pieces(of_piece, hidden, targets, weights / unit, piece, groups, training)
    return LossSums(loss * unit, weight, correct * unit)


def _unit(weights, weight):
    """What weights are divided by, so that they add up to a power of two near the number of real positions.

    The gradient of a mean is then a power of two times that of the sum, which rounds nothing in lower precision, and
    the gradient of the sum is one that float16 holds, whatever the weights.
    """
    real = ops.sum(ops.cast(ops.not_equal(weights, 0), "float32"))
    power = ops.exp2(ops.round(ops.log2(ops.maximum(real, 1.0))))
    return ops.where(weight > 0, weight / power, 1.0)
