"""The frozen model with full attention as teacher: what it holds for likely, in place of the next token of a text."""

import keras_hub
import numpy as np
from keras import ops

import keras_fam
from keras_fam.backend.pieces import sum_over_pieces
from keras_fam.training.chunked_loss import LossSums

BEFORE = 511  # tokens that a place has in sight at least, where a text has as many before it


def windows(read, size):
    """What a teacher reads at once of a text longer than `size`: `(first, tokens, skipped)`.

    Args:
        read: int `[length]`, a start token and a text.
        size: int, tokens of a window, above `BEFORE + 1`.

    Yields:
        `first`, the place of the first state that is wanted; the window, int `[size]` or less; and how many of its
        states are not wanted.
    """
    yield 0, read[:size], 0
    new = size - 1 - BEFORE
    for first in range(size, len(read), new):
        yield first, np.concatenate([read[:1], read[first - BEFORE : first + new]]), 1 + BEFORE


def hidden_states(path, preset, pieces, start_token_id, dtype, size=2048, rows=4):
    """The stock model's hidden states for pieces of texts, each behind a start token. They are kept in a file.

    Args:
        path: pathlib.Path of a `.npy` file. If it is not there, it is made.
        preset: str, of the stock model.
        pieces: int `[pieces, length]`.
        start_token_id: int.
        dtype: str, of the model.
        size: int, tokens that are read at once, the start token among them.
        rows: int, windows in a batch.

    Returns:
        float16 `[pieces, length, hidden_dim]`, a memory map; at each place is what tells the piece's token there.

    Raises:
        ValueError: the file's states are of other pieces.
    """
    if not path.exists():
        stock = keras_hub.models.Backbone.from_preset(preset, dtype=dtype)
        found = np.zeros((*pieces.shape, stock.hidden_dim), "float16")
        places, batch = [], []
        for number, piece in enumerate(pieces):
            for window in windows(np.concatenate([[start_token_id], piece[:-1]]), size):
                places.append((number, *window))
        for begin in range(0, len(places), rows):
            batch = places[begin : begin + rows]
            token_ids = np.zeros((rows, size), "int32")
            for row, (*_, tokens, _) in zip(token_ids, batch):
                row[: len(tokens)] = tokens  # What stands behind a place does not count.
            states = stock.predict_on_batch({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})
            for (number, first, tokens, skipped), made in zip(batch, states):
                made = np.asarray(made, "float16")[skipped : len(tokens)]
                found[number, first : first + len(made)] = made
        with path.with_suffix(".new").open("wb") as file:
            np.save(file, found)
        path.with_suffix(".new").replace(path)
    found = np.load(path, mmap_mode="r")
    if found.shape[:2] != pieces.shape:
        raise ValueError(f"{path} must hold states of the texts' pieces, {pieces.shape}. Received: {found.shape[:2]}.")
    return found


def frequent_words(arrays, count):
    """Token ids, in order: the `count` most frequent of the texts, and all that PassKey needs."""
    needed = [np.unique(ids[ids >= 0]) for name, ids in arrays.items() if name not in ("train", "held_out")]
    often = np.argsort(-np.bincount(arrays["train"].ravel()), kind="stable")[:count]
    return np.unique(np.concatenate([*needed, often])).astype("int32")


class Pupil(keras_fam.FAMCausalLM):
    """A language model that learns from the batches of `texts.batches` that have a teacher's states.

    The loss is the divergence of the pupil's distribution from the teacher's, exact and over all of `words`, and
    the cross entropy of rows that are not taught; in nats, the mean by weight. Logits exist a piece at a time.

    Args:
        backbone: `keras_fam.FAMBackbone` with the embedding of the stock model as its head.
        words: int `[count]`, token ids that the distributions are over, or None for the whole vocabulary. Targets are
            places in it.
    """

    def __init__(self, backbone, words=None):
        super().__init__(backbone)
        self.words = words

    def logits_of_words(self, hidden):
        if self.words is None:
            return self.backbone.logits(hidden)
        embeddings = ops.take(self.backbone.token_embedding.embeddings, self.words, axis=0)
        return ops.matmul(hidden, ops.transpose(ops.cast(embeddings, hidden.dtype)))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        def log_likely(hidden):
            return ops.log_softmax(ops.cast(self.logits_of_words(hidden), "float32")[0], axis=-1)

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
