"""PassKey retrieval in token form, for models trained from scratch (the paper's section 3.2, at toy scale)."""

from collections.abc import Iterator, Sequence

import numpy as np

from keras_fam.checks import check_generator, check_integer, check_probabilities, check_probability, check_weight
from keras_fam.data.passkey_stream import PassKeyStream
from keras_fam.types import Tensor


class PassKeyTask:
    """Texts of filler that state a key of random digits once and ask for it later (section 3.2 of the paper).

    The filler repeats one sentence of `filler_length` distinct words, some of them replaced at random. A statement is
    the KEY marker and the digits; a question with its answer is the ASK marker and the digits. Both are written over
    the filler and lie wholly inside a block, so only memory carries a key from its block to a later one.

    Args:
        block_size: int, tokens per block; a statement and a question must fit in one, `2 * (key_length + 1)` tokens.
        key_length: int, digits per key.
        filler_length: int, distinct words of the filler sentence, at least `key_length`.
        noise: float, share of the filler that is replaced by a random word of the sentence.
        filler_weight: float, loss weight of predicting filler; answers have 1, all else 0.

    Attributes:
        vocabulary_size: int.
        padding_id, key_id, ask_id: int, the token ids of padding (0) and of the two markers.
        digit_ids: int32 `[10]`, the token ids of the digits 0 to 9.
        filler_ids: int32 `[filler_length]`, the token ids of the filler sentence.

    Raises:
        TypeError, ValueError: an argument of another type or out of range; a block that is too short.

    Example:

    ```python
    task = keras_fam.data.PassKeyTask(block_size=32, key_length=3)
    rng = np.random.default_rng(0)
    token_ids, targets, weights = task.examples(batch_size=64, blocks=4, rng=rng, question_rate=0.4)
    prompts, keys = task.prompt(batch_size=8, blocks=20, rng=rng)  # a model must go on with task.answers(keys)
    ```
    """

    def __init__(
        self,
        block_size: int,
        key_length: int = 5,
        filler_length: int = 23,
        noise: float = 0.1,
        filler_weight: float = 0.0,
    ):
        self.key_length = check_integer("key_length", key_length, 1)
        self.block_size = check_integer("block_size", block_size, 1)
        self.filler_length = check_integer("filler_length", filler_length, 1)
        self.noise = check_probability("noise", noise)
        self.filler_weight = check_weight("filler_weight", filler_weight)
        self.statement_length = self.key_length + 1
        if self.block_size < 2 * self.statement_length:
            raise ValueError(
                "`block_size` must hold a key statement and a question, 2 * (key_length + 1) = "
                f"{2 * self.statement_length} tokens. Received: block_size={block_size}, key_length={key_length}."
            )
        if self.filler_length < self.key_length:
            raise ValueError(
                "`filler_length` must be at least `key_length`. Received: "
                f"filler_length={filler_length}, key_length={key_length}."
            )
        self.padding_id = 0
        self.digit_ids = np.arange(1, 11, dtype="int32")
        self.key_id, self.ask_id = 11, 12
        self.filler_ids = np.arange(13, 13 + self.filler_length, dtype="int32")
        self.vocabulary_size = 13 + self.filler_length

    def answers(self, keys: Tensor) -> np.ndarray:
        """The tokens that answer a question.

        Args:
            keys: int `[batch, key_length]`, digits 0 to 9.

        Returns:
            int32 `[batch, key_length]`, token ids.

        Raises:
            TypeError, ValueError: keys of another dtype, shape or range.
        """
        return self.digit_ids[self._check_keys(keys, None)]

    def examples(
        self,
        batch_size: int,
        blocks: int,
        rng: np.random.Generator,
        keys: Tensor | None = None,
        question_rate: float | Sequence[float] = 0.0,
        introduce: bool | Sequence[bool] = True,
        answer_noise: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Training examples, each with a key of its own.

        The statement lies at a random place in the first block. Every other block asks with probability
        `question_rate` at a random place and gives the answer; the last `key_length + 1` tokens of the text always do.

        Args:
            batch_size: int.
            blocks: int, blocks per text.
            rng: `numpy.random.Generator`, the only source of randomness.
            keys: int `[batch_size, key_length]`, digits 0 to 9, or None for new random keys.
            question_rate: float, or one for each row.
            introduce: bool, or one for each row. False goes on with a text that stated its key earlier: there is no
                statement, and the first block is like the others.
            answer_noise: float, share of the answers' digits that are random in `token_ids` and right in `targets`
                alone. At 1 the text never repeats its key, and memory must hold it from the statement on.

        Returns:
            `(token_ids, targets, weights)`, int32, int32 and float32, all `[batch_size, blocks * block_size]`.
            Targets are the next tokens, and padding at the last place; weights are 1 where the target is a digit of
            an answer, `filler_weight` where it is filler, else 0.

        Raises:
            TypeError, ValueError: an argument of another type, shape or range; no keys though none is introduced.
        """
        batch_size = check_integer("batch_size", batch_size, 1)
        blocks = check_integer("blocks", blocks, 1)
        check_generator("rng", rng)
        question_rate = check_probabilities("question_rate", question_rate, batch_size)
        introduce = self._check_introduce(introduce, batch_size)
        if keys is None:
            if not introduce.all():
                raise ValueError("`keys` must be given if `introduce` is False. Received: keys=None.")
            keys = self._new_keys(rng, batch_size)
        keys = self._check_keys(keys, batch_size)
        check_probability("answer_noise", answer_noise)
        phases = self._new_phases(rng, batch_size)
        return self._write(rng, blocks, keys, phases, introduce, question_rate, answer_noise)

    def prompt(self, batch_size: int, blocks: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Texts that end in a question without its answer.

        Args:
            batch_size: int.
            blocks: int, blocks in front of the question.
            rng: `numpy.random.Generator`, the only source of randomness.

        Returns:
            `(token_ids, keys)`: int32 `[batch_size, blocks * block_size + 1]`, with the statement at a random place in
            the first block and the ASK marker at the end, and int64 `[batch_size, key_length]`, digits 0 to 9.

        Raises:
            TypeError, ValueError: an argument of another type or out of range.
        """
        pieces, keys = self.prompt_blocks(batch_size, blocks, rng)
        return np.concatenate(list(pieces), axis=1), keys

    def prompt_blocks(
        self, batch_size: int, blocks: int, rng: np.random.Generator
    ) -> tuple[Iterator[np.ndarray], np.ndarray]:
        """The same texts as `prompt`, made block by block: for texts too long to hold at once.

        Args:
            batch_size: int.
            blocks: int, blocks in front of the question.
            rng: `numpy.random.Generator`, the only source of randomness; all that is drawn from it is drawn at once.

        Returns:
            `(pieces, keys)`: an iterator over `blocks` arrays int32 `[batch_size, block_size]` and one of
            `[batch_size, 1]`, the ASK marker, and int64 `[batch_size, key_length]`, digits 0 to 9.

        Raises:
            TypeError, ValueError: an argument of another type or out of range.

        Example:

        ```python
        task = keras_fam.data.PassKeyTask(block_size=32)
        pieces, keys = task.prompt_blocks(batch_size=2, blocks=520, rng=np.random.default_rng(0))
        state = lm.initial_state(batch_size=2)
        for piece in pieces:
            logits, state = lm.stream(piece, state)
        ```
        """
        batch_size = check_integer("batch_size", batch_size, 1)
        blocks = check_integer("blocks", blocks, 1)
        check_generator("rng", rng)
        keys, phases = self._new_keys(rng, batch_size), self._new_phases(rng, batch_size)
        starts = rng.integers(self.block_size - self.statement_length + 1, size=batch_size)
        return self._prompt_pieces(blocks, keys, phases, starts, np.random.default_rng(rng.integers(2**63))), keys

    def stream(
        self,
        batch_size: int,
        blocks: int,
        restart: float | Sequence[float],
        seed: int,
        question_rate: float | Sequence[float] = 0.0,
        answer_noise: float = 0.0,
        restate: float | Sequence[float] = 0.0,
    ) -> PassKeyStream:
        """Endless texts for training with carried state: each row goes on from batch to batch until it restarts.

        Args:
            batch_size: int.
            blocks: int, blocks per batch.
            restart: float, probability that a row begins a new text with a new key at a batch, or one for each row.
            seed: int, at least 0.
            question_rate: float, see `examples`; of a sequence, each row and batch draws one.
            answer_noise: float, see `examples`.
            restate: float, probability that a row that does not restart states a new key at a batch, or one for each
                row: its memory then has to let the old key go.

        Returns:
            `keras.utils.PyDataset` without end: give `fit` a `steps_per_epoch`. See `PassKeyStream`.

        Raises:
            TypeError, ValueError: an argument of another type or out of range.

        Example:

        ```python
        task = keras_fam.data.PassKeyTask(block_size=32)
        stream = task.stream(batch_size=64, blocks=4, restart=0.3, seed=0, question_rate=[0.0, 0.05, 0.15, 0.4])
        inputs, targets, weights = stream[0]
        ```
        """
        return PassKeyStream(self, batch_size, blocks, restart, seed, question_rate, answer_noise, restate)

    # === Text ===

    def _new_keys(self, rng, batch_size):
        return rng.integers(10, size=(batch_size, self.key_length))

    def _new_phases(self, rng, batch_size):
        """Where in the filler sentence each text begins."""
        return rng.integers(self.filler_length, size=batch_size)

    def _filler(self, rng, phases, length):
        words = (phases[:, None] + np.arange(length)) % self.filler_length
        noisy = rng.random(words.shape) < self.noise
        return self.filler_ids[np.where(noisy, rng.integers(self.filler_length, size=words.shape), words)]

    def _put(self, token_ids, rows, starts, marker, keys):
        """Writes a marker and each row's digits at `starts`; returns the rows and places."""
        places = starts[:, None] + np.arange(self.statement_length)
        token_ids[rows[:, None], places] = np.insert(self.digit_ids[keys[rows]], 0, marker, axis=1)
        return rows[:, None], places

    def _write(self, rng, blocks, keys, phases, introduce, question_rate, answer_noise):
        """The arrays of `examples`; all draws are made for every row, whatever the row then uses."""
        batch_size, size, length = len(keys), self.statement_length, blocks * self.block_size
        token_ids = self._filler(rng, phases, length)
        # Where each block's statement or question may begin: the last block's end belongs to the final question.
        room = np.full(blocks, self.block_size - size + 1)
        room[-1] -= size
        starts = np.arange(blocks) * self.block_size + rng.integers(room, size=(batch_size, blocks))
        asks = rng.random((batch_size, blocks)) < question_rate[:, None]
        asks[introduce, 0] = False
        self._put(token_ids, np.flatnonzero(introduce), starts[introduce, 0], self.key_id, keys)
        rows = np.append(np.nonzero(asks)[0], np.arange(batch_size))
        starts = np.append(starts[asks], np.full(batch_size, length - size))
        rows, places = self._put(token_ids, rows, starts, self.ask_id, keys)
        targets = np.zeros_like(token_ids)
        targets[:, :-1] = token_ids[:, 1:]
        weights = np.where(targets >= self.filler_ids[0], self.filler_weight, 0.0).astype("float32")
        weights[rows, places[:, :-1]] = 1.0
        noisy = rng.random(places[:, 1:].shape) < answer_noise
        answers = token_ids[rows, places[:, 1:]]
        token_ids[rows, places[:, 1:]] = np.where(noisy, self.digit_ids[rng.integers(10, size=noisy.shape)], answers)
        return token_ids, targets, weights

    def _prompt_pieces(self, blocks, keys, phases, starts, rng):
        for block in range(blocks):
            token_ids = self._filler(rng, phases + block * self.block_size, self.block_size)
            if block == 0:
                self._put(token_ids, np.arange(len(keys)), starts, self.key_id, keys)
            yield token_ids
        yield np.full((len(keys), 1), self.ask_id, "int32")

    # === Checks ===

    def _check_keys(self, keys, batch_size):
        keys = np.asarray(keys)
        rows = len(keys) if batch_size is None and keys.ndim else batch_size
        if keys.shape != (rows, self.key_length):
            raise ValueError(
                f"`keys` must have shape [batch, key_length], ({'batch' if batch_size is None else batch_size}, "
                f"{self.key_length}). Received: keys of shape {keys.shape}."
            )
        if keys.dtype.kind not in "iu":
            raise TypeError(f"`keys` must hold integers. Received: keys of dtype {keys.dtype}.")
        if keys.size and not (0 <= keys.min() and keys.max() <= 9):
            wrong = keys.min() if keys.min() < 0 else keys.max()
            raise ValueError(f"`keys` must hold digits, 0 to 9. Received: keys with {wrong}.")
        return keys

    def _check_introduce(self, introduce, batch_size):
        array = np.asarray(introduce)
        if array.dtype != bool:
            raise TypeError(
                f"`introduce` must be True or False, or one for each row. Received: introduce={introduce!r}."
            )
        if array.shape not in ((), (batch_size,)):
            raise ValueError(
                f"`introduce` must be one bool or of shape ({batch_size},). Received: introduce of shape {array.shape}."
            )
        return np.broadcast_to(array, (batch_size,))
