"""PassKey texts that go on from batch to batch, for training with carried state."""

import keras
import numpy as np

from keras_fam.checks import check_integer, check_probabilities, check_probability


class PassKeyStream(keras.utils.PyDataset):
    """Endless PassKey texts, made by `PassKeyTask.stream`: row i of batch t + 1 goes on with row i of batch t.

    Every row restarts in batch 0, and with its probability `restart` in every later one: it then states a new key in
    its first block. A row that goes on states a new key there with its probability `restate`, and is asked for the key
    that it stated last. Batch t depends on the arguments and t alone: batches may be asked for in any order, twice, and
    by several workers.

    The stream has no end, so `fit` wants `steps_per_epoch`, takes the batches in order whatever its argument
    `shuffle`, and goes on in the second epoch where the first one ended; `evaluate` wants `steps`.

    Batches are `(inputs, targets, weights)` as of `PassKeyTask.examples`, with inputs a dict of `"token_ids"`, int32
    `[batch_size, blocks * block_size]`, `"padding_mask"`, int32 of that shape and all ones, and `"document_start"`,
    int32 `[batch_size]`, 1 for rows that restart.
    """

    def __init__(self, task, batch_size, blocks, restart, seed, question_rate, answer_noise, restate):
        super().__init__()
        self.task = task
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.blocks = check_integer("blocks", blocks, 1)
        self.restart = check_probabilities("restart", restart, self.batch_size)
        self.restate = check_probabilities("restate", restate, self.batch_size)
        self.seed = check_integer("seed", seed, 0)
        self.question_rates = check_probabilities("question_rate", question_rate)
        self.answer_noise = check_probability("answer_noise", answer_noise)
        self._latest = None  # what `_texts` found last: saves looking back when batches are taken in order

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        index = check_integer("index", index, 0)
        rng, restarts, states, _, _ = self._draw(index)
        keys, phases = self._texts(index)
        phases = phases + index * self.blocks * self.task.block_size
        question_rate = rng.choice(self.question_rates, self.batch_size)
        token_ids, targets, weights = self.task._write(
            rng, self.blocks, keys, phases, states, question_rate, self.answer_noise
        )
        inputs = {
            "token_ids": token_ids,
            "padding_mask": np.ones_like(token_ids),
            "document_start": restarts.astype("int32"),
        }
        return inputs, targets, weights

    def _draw(self, index):
        """One batch's own generator, rows that restart in it, rows that state a key, and those keys and phases."""
        rng = np.random.default_rng([self.seed, index])
        restarts = (rng.random(self.batch_size) < self.restart) | (index == 0)
        states = restarts | (rng.random(self.batch_size) < self.restate)
        keys, phases = self.task._new_keys(rng, self.batch_size), self.task._new_phases(rng, self.batch_size)
        return rng, restarts, states, keys, phases

    def _texts(self, index):
        """The key and the phase that each row of a batch drew when it last stated a key, at this batch or before."""
        keys, phases = np.zeros((self.batch_size, self.task.key_length), int), np.zeros(self.batch_size, int)
        missing, latest = np.ones(self.batch_size, bool), self._latest
        for step in range(index, -1, -1):
            if latest is not None and latest[0] == step:
                _, new_keys, new_phases = latest
                found = missing
            else:
                _, _, states, new_keys, new_phases = self._draw(step)
                found = states & missing
            keys[found], phases[found] = new_keys[found], new_phases[found]
            missing = missing & ~found
            if not missing.any():
                break
        self._latest = (index, keys, phases)
        return keys, phases
