"""The frozen model with full attention as teacher: soft targets in place of the next token of a text."""

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_fam


class Teacher(keras.Model):
    """What the stock model holds for likely after each token, with all tokens before it in sight.

    Called with a dict of `"token_ids"` and `"padding_mask"`, int `[rows, length]`, it returns float32
    `[rows, length, 2 * likeliest]`: token ids, and then their probabilities, the likeliest first.

    Args:
        preset: str, of the stock model.
        length: int, tokens of a row.
        likeliest: int, how many tokens are told for each place; at most the vocabulary's size.
        dtype: str, of the model.
    """

    def __init__(self, preset, length, likeliest, dtype):
        super().__init__()
        stock = keras_hub.models.Backbone.from_preset(preset, dtype=dtype)
        self.backbone = keras_fam.FAMBackbone(stock, block_size=length, memory_segments=0, fam_length=0)
        self.backbone.trainable = False
        self.likeliest = likeliest

    def call(self, inputs):
        logits = ops.cast(self.backbone.logits(self.backbone(inputs)), "float32")
        probabilities, token_ids = ops.top_k(ops.softmax(logits), self.likeliest)
        return ops.concatenate([ops.cast(token_ids, "float32"), probabilities], axis=-1)


def taught(batches, teacher, start_token_id, key_rows, block_size):
    """The batches of `texts.batches` with soft targets: the teacher's for rows of text, the right token for PassKey.

    The teacher reads each row alone. In front of one that goes on from the batch before, a start token stands, and its
    first block has no loss: the teacher, which begins to read there, knows less than the pupil.

    Args:
        batches: of `texts.batches`: inputs, targets and weights `[rows, length]`.
        teacher: `Teacher` for rows one token longer than those of `batches`.
        start_token_id: int.
        key_rows: int, rows of PassKey, the first of each batch.
        block_size: int, of the pupil.

    Yields:
        `(inputs, targets, weights)`, targets as `Teacher` returns them.
    """
    for inputs, targets, weights in batches:
        soft = np.zeros((*targets.shape, 2 * teacher.likeliest), "float32")
        soft[..., 0], soft[..., teacher.likeliest] = targets, 1.0
        going_on = inputs["document_start"][key_rows:, None] == 0
        read = np.pad(inputs["token_ids"][key_rows:], ((0, 0), (1, 1)), constant_values=start_token_id)
        read = np.where(going_on, read[:, :-1], read[:, 1:])
        said = teacher.predict_on_batch({"token_ids": read, "padding_mask": np.ones_like(read)})
        soft[key_rows:] = np.where(going_on[..., None], said[:, 1:], said[:, :-1])
        weights = weights.copy()
        weights[key_rows:, :block_size] *= ~going_on
        yield inputs, soft, weights


class SoftCrossentropy(keras.losses.Loss):
    """Cross entropy to soft targets as `Teacher` gives them; what is not among the likeliest counts as one token.

    Called with soft targets `[rows, length, 2 * likeliest]`, logits `[rows, length, vocabulary_size]` and weights
    `[rows, length]`, it returns the mean in nats, by weight.
    """

    def __init__(self, **options):
        super().__init__(reduction="mean_with_sample_weight", **options)

    def call(self, y_true, y_pred):
        token_ids, probabilities = ops.split(y_true, 2, axis=-1)
        log_pupil = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        log_pupil = ops.take_along_axis(log_pupil, ops.cast(token_ids, "int32"), axis=-1)
        others = ops.maximum(1 - ops.sum(probabilities, axis=-1), 0.0)
        log_others = ops.log(ops.maximum(1 - ops.sum(ops.exp(log_pupil), axis=-1), 1e-6))
        return -ops.sum(probabilities * log_pupil, axis=-1) - others * log_others
