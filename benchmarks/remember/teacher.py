"""The frozen model with full attention as teacher: what it holds for likely, in place of the next token of a text."""

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_fam
from keras_fam.backend.pieces import sum_over_pieces
from keras_fam.training.chunked_loss import LossSums


class Teacher(keras.Model):
    """Hidden states of the stock model, each with all tokens before it in sight.

    Args:
        preset: str, of the stock model.
        length: int, tokens of a row.
        dtype: str, of the model.

    Call arguments:
        inputs: dict of `"token_ids"`, int `[rows, 1 + 2 * length]`, and `"first"`, int `[rows]`: the place from which
            on `length` hidden states are wanted.

    Returns:
        float `[rows, length, hidden_dim]`.
    """

    def __init__(self, preset, length, dtype):
        super().__init__()
        stock = keras_hub.models.Backbone.from_preset(preset, dtype=dtype)
        size = 1 + 2 * length
        self.backbone = keras_fam.FAMBackbone(stock, block_size=size, memory_segments=0, fam_length=0)
        self.backbone.trainable = False
        self.length = length

    def call(self, inputs):
        token_ids = inputs["token_ids"]
        hidden = self.backbone({"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids)})
        places = inputs["first"][:, None] + ops.arange(self.length)
        return ops.take_along_axis(hidden, places[..., None], axis=1)


def taught(batches, teacher, start_token_id, key_rows):
    """The batches of `texts.batches` with the teacher's hidden states for rows of text.

    In front of a row that goes on from the batch before, the teacher reads a start token and that batch's part of it:
    it has one part more in sight than the pupil's step, which has nothing but memory of it.

    Args:
        batches: of `texts.batches`: inputs, targets and weights `[rows, length]`.
        teacher: `Teacher` for rows as long.
        start_token_id: int.
        key_rows: int, rows of PassKey, the first of each batch. They keep their targets.

    Yields:
        `(inputs, targets, weights)`, inputs with `"taught"`, bool `[rows]`, the rows of text, and `"teacher"`, float32
        `[rows, length, hidden_dim]`, the teacher's hidden states for these.
    """
    before = None
    for inputs, targets, weights in batches:
        rows = inputs["token_ids"][key_rows:]
        going_on = inputs["document_start"][key_rows:] == 0
        before = rows if before is None else before
        start = np.full((len(rows), 1), start_token_id, "int32")
        read = np.where(
            going_on[:, None],
            np.concatenate([start, before, rows], axis=1),
            np.concatenate([rows, start, before], axis=1),  # What stands behind a place does not count.
        )
        first = np.where(going_on, 1 + teacher.length, 0).astype("int32")
        said = np.asarray(teacher.predict_on_batch({"token_ids": read, "first": first}), "float32")
        said = np.pad(said, ((key_rows, 0), (0, 0), (0, 0)))
        before = rows
        yield {**inputs, "taught": np.arange(len(said)) >= key_rows, "teacher": said}, targets, weights


class Pupil(keras_fam.FAMCausalLM):
    """A language model that learns from the batches of `taught`.

    The loss is the divergence of the pupil's distribution from the teacher's, exact and over the whole vocabulary, and
    the cross entropy of rows that are not taught; in nats, the mean by weight. Logits exist a piece at a time.
    """

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        def log_likely(hidden):
            return ops.log_softmax(ops.cast(self.backbone.logits(hidden), "float32")[0], axis=-1)

        def of_piece(hidden, targets, weights):
            pupil, teacher = ops.split(hidden, 2, axis=-1)
            pupil, teacher = log_likely(pupil), ops.stop_gradient(log_likely(teacher))
            taught, targets, weights = targets[0] % 2, targets[0] // 2, weights[0]
            divergence = ops.sum(ops.exp(teacher) * (teacher - pupil), axis=-1)
            crossentropy = -ops.take_along_axis(pupil, targets[:, None], axis=-1)[:, 0]
            right = ops.equal(ops.cast(ops.argmax(pupil, axis=-1), "int32"), targets)
            losses = ops.where(ops.cast(taught, "bool"), divergence, crossentropy)
            return ops.sum(losses * weights), ops.sum(ops.cast(right, "float32") * weights)

        hidden = ops.concatenate([y_pred, ops.cast(x["teacher"], y_pred.dtype)], axis=-1)
        # One label says both: the target, and whether it is taught.
        labels = 2 * ops.cast(y, "int32") + ops.cast(x["taught"], "int32")[:, None]
        hidden, labels = ops.reshape(hidden, (-1, hidden.shape[-1])), ops.reshape(labels, (-1,))
        weights = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
        loss, right = sum_over_pieces(of_piece, hidden, labels, weights, self.loss.piece, training=training)
        sums = LossSums(loss, ops.sum(weights), right)
        loss = ops.divide_no_nan(loss, sums.weight)
        self._token_metrics.add(sums, loss)
        return loss
