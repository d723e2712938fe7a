"""PassKey texts that go on from batch to batch, for training with carried state."""

import keras
import numpy as np

from keras_fam.checks import check_integer, check_probability
from keras_fam.data.checks import MAX_INT, check_rates, check_size
from keras_fam.data.passkey_writing import Keys, new_keys, new_phases, write_examples


class PassKeyStream(keras.utils.PyDataset):
    """Endless PassKey texts, made by `PassKeyTask.stream`: row i of batch t + 1 goes on with row i of batch t.

    Every row restarts in batch 0, and with its probability `restart` in every later one: it then states a new key in
    its first block. A row that goes on states a new key with its probability `restate`, in any block but the last
    (where a batch has one block, in that), and is asked for the key that it stated last: two statements may be as near
    as two blocks. Of several keys, a row that restarts states all, a row that goes on states a random one anew, and a
    question asks for a random one. Batch t depends on the arguments and t alone: batches may be asked for in any order,
    twice, and by several workers.

    With `parts` above 1 a batch is that many of such batches in a row, read as one: a row restarts in the first alone,
    may state a new key in each, draws one question rate for all, and is always asked at the end of the last alone.

    The stream has no end, so `fit` wants `steps_per_epoch`, takes the batches in order whatever its argument
    `shuffle`, and goes on in the second epoch where the first one ended; `evaluate` wants `steps`.

    Batches are `(inputs, targets, weights)` as of `PassKeyTask.examples`, with inputs a dict of `"token_ids"`, int32
    `[batch_size, blocks * block_size]`, `"padding_mask"`, int32 of that shape and all ones, and `"document_start"`,
    int32 `[batch_size]`, 1 for rows that restart.
    """

    def __init__(self, task, batch_size, blocks, restart, seed, question_rate, answer_noise, restate, parts):
        super().__init__()
        self.task = task
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.blocks = check_integer("blocks", blocks, 1)
        check_size(batch_size=self.batch_size, blocks=self.blocks, block_size=task.block_size)
        self.parts = check_integer("parts", parts, 1)
        if self.blocks % self.parts:
            raise ValueError(f"`parts` must divide `blocks`. Received: parts={parts}, blocks={blocks}.")
        self.restart = check_rates("restart", restart, self.batch_size)
        self.restate = check_rates("restate", restate, self.batch_size)
        self.seed = check_integer("seed", seed, 0, None)
        self.question_rates = check_rates("question_rate", question_rate)
        self.answer_noise = check_probability("answer_noise", answer_noise)
        self._latest = None  # what `_texts` found last: saves looking back when batches are taken in order

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        index = check_integer("index", index, 0, MAX_INT)
        restarts, question_rate, *first = self._part(index * self.parts)
        parts = [first]
        for part in range(1, self.parts):
            _, _, *text = self._part(index * self.parts + part, question_rate)
            parts.append(text)
        token_ids, targets, weights = (np.concatenate(arrays, axis=1) for arrays in zip(*parts))
        inputs = {
            "token_ids": token_ids,
            "padding_mask": np.ones_like(token_ids),
            "document_start": restarts.astype("int32"),
        }
        return inputs, targets, weights

    def _part(self, index, question_rate=None):
        """One part of a batch: the rows that restart, bool `[batch_size]`, question rates, token ids, targets, weights.

        `question_rate` `[batch_size]`: of the batch, drawn here if this is its first part.
        """
        blocks = self.blocks // self.parts
        rng, restarts, stated, new, _ = self._draw(index)
        previous = self._texts(index - 1)[0] if index else new
        latest, phases = self._texts(index)
        phases = phases + index * blocks * self.task.block_size
        anywhere = rng.integers(max(blocks - 1, 1), size=self.batch_size)
        keys = Keys(latest, previous, stated, np.where(restarts, 0, anywhere))
        drawn = rng.choice(self.question_rates, self.batch_size)
        question_rate = drawn if question_rate is None else question_rate
        final = (index + 1) % self.parts == 0
        texts = write_examples(self.task, rng, blocks, keys, phases, question_rate, self.answer_noise, final)
        return restarts, question_rate, *texts

    def _draw(self, index):
        """One part's own generator, rows that restart in it, keys that are stated in it, and those keys and phases.

        `stated` bool `[batch_size, num_keys]`, keys `[batch_size, num_keys, key_length]`, all else `[batch_size]`.
        """
        rng = np.random.default_rng([self.seed, index])
        restarts = (rng.random(self.batch_size) < self.restart * (index % self.parts == 0)) | (index == 0)
        restates = rng.random(self.batch_size) < self.restate
        keys, phases = new_keys(self.task, rng, self.batch_size), new_phases(self.task, rng, self.batch_size)
        names = rng.integers(self.task.num_keys, size=self.batch_size)
        one = names[:, None] == np.arange(self.task.num_keys)
        return rng, restarts, restarts[:, None] | (restates[:, None] & one), keys, phases

    def _texts(self, index):
        """The keys that each row of a part stated last, in this part or before, and the phase it drew with the last.

        It looks back part by part; rows that state nothing but in part 0 are looked up there at once.
        """
        shape = (self.batch_size, self.task.num_keys)
        keys, phases = np.zeros((*shape, self.task.key_length), int), np.zeros(self.batch_size, int)
        missing, latest = np.ones(shape, bool), self._latest
        restating = (self.restart > 0) | (self.restate > 0)
        step = index
        while missing.any():
            if latest is not None and latest[0] == step:
                _, new, drawn = latest
                found = missing
            else:
                _, _, stated, new, drawn = self._draw(step)
                found = stated & missing
            last = found.any(axis=1) & missing.all(axis=1)
            keys[found], phases[last] = new[found], drawn[last]
            missing = missing & ~found
            step = step - 1 if (missing.any(axis=1) & restating).any() else 0
        self._latest = (index, keys, phases)
        return keys, phases
