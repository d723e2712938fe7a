"""PassKey retrieval in token form, for models trained from scratch (the paper's section 3.2, at toy scale)."""

from collections.abc import Iterator, Sequence

import numpy as np

from keras_fam.checks import check_flag, check_generator, check_integer, check_probability
from keras_fam.data.checks import (
    MAX_INT,
    MAX_WORDS,
    check_integers,
    check_loss_weight,
    check_rates,
    check_size,
    check_sizes,
    to_array,
)
from keras_fam.data.passkey_blocks import PassKeyBlock, question_blocks
from keras_fam.data.passkey_stream import PassKeyStream
from keras_fam.data.passkey_writing import (
    Keys,
    new_keys,
    new_phases,
    new_statement_starts,
    prompt_pieces,
    write_examples,
)
from keras_fam.types import Tensor


class PassKeyTask:
    """Texts of filler that state a key of random digits once and ask for it later (section 3.2 of the paper).

    The filler repeats one sentence of `filler_length` distinct words, some of them replaced at random. A statement is
    the KEY marker and the digits; a question with its answer is the ASK marker and the digits. Both are written over
    the filler and lie wholly inside a block, so only memory carries a key from its block to a later one.

    With `num_keys` above 1 a text holds several keys at once. Each has a name, that is, a KEY and an ASK marker of its
    own: all are stated in the first block, in any order, and a question asks for one of them.

    Args:
        block_size: int, tokens per block; all statements and a question must fit in one,
            `(num_keys + 1) * (key_length + 1)` tokens.
        key_length: int, digits per key.
        filler_length: int, distinct words of the filler sentence, at least `key_length` and at most 2**20.
        noise: float, share of the filler that is replaced by a random word of the sentence.
        filler_weight: float, loss weight of predicting filler; answers have 1, all else 0.
        num_keys: int, keys that a text holds at once, at most 2**20.

    Attributes:
        vocabulary_size: int.
        padding_id: int, the token id of padding (0).
        key_id: int, the token id of the first key's KEY marker.
        ask_id: int, the token id of the first key's ASK marker.
        key_ids: int32 `[num_keys]`, the token ids of the KEY markers.
        ask_ids: int32 `[num_keys]`, the token ids of the ASK markers.
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
        num_keys: int = 1,
    ):
        self.key_length = check_integer("key_length", key_length, 1, MAX_INT)
        self.block_size = check_integer("block_size", block_size, 1, MAX_INT)
        self.filler_length = check_integer("filler_length", filler_length, 1, MAX_WORDS)
        self.num_keys = check_integer("num_keys", num_keys, 1, MAX_WORDS)
        self.noise = check_probability("noise", noise)
        self.filler_weight = check_loss_weight("filler_weight", filler_weight)
        self.statement_length = self.key_length + 1
        needed = (self.num_keys + 1) * self.statement_length
        if self.block_size < needed:
            raise ValueError(
                "`block_size` must hold all key statements and a question, (num_keys + 1) * (key_length + 1) = "
                f"{needed} tokens. Received: block_size={block_size}, key_length={key_length}, num_keys={num_keys}."
            )
        if self.filler_length < self.key_length:
            raise ValueError(
                "`filler_length` must be at least `key_length`. Received: "
                f"filler_length={filler_length}, key_length={key_length}."
            )
        self.padding_id = 0
        self.digit_ids = np.arange(1, 11, dtype="int32")
        markers = np.arange(11, 11 + 2 * self.num_keys, dtype="int32")
        self.key_ids, self.ask_ids = markers[::2], markers[1::2]
        self.key_id, self.ask_id = int(self.key_ids[0]), int(self.ask_ids[0])
        self.vocabulary_size = 11 + 2 * self.num_keys + self.filler_length
        self.filler_ids = np.arange(11 + 2 * self.num_keys, self.vocabulary_size, dtype="int32")

    def answers(self, keys: Tensor) -> np.ndarray:
        """The tokens that answer a question.

        Args:
            keys: int `[batch, key_length]`, digits 0 to 9.

        Returns:
            int32 `[batch, key_length]`, token ids.

        Raises:
            TypeError, ValueError: keys of another dtype, shape or range.
        """
        keys = self._check_digits(keys)
        if keys.ndim != 2 or keys.shape[1] != self.key_length:
            raise ValueError(
                f"`keys` must have shape [batch, key_length], (batch, {self.key_length}). Received: keys of shape "
                f"{keys.shape}."
            )
        return self.digit_ids[keys]

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
        """Training examples, each with a key of its own, or `num_keys` of them.

        The statement lies at a random place in the first block. Every other block asks with probability
        `question_rate` at a random place and gives the answer; the last `key_length + 1` tokens of the text always do.
        Of several keys, each question asks for a random one.

        Args:
            batch_size: int.
            blocks: int, blocks per text. The batch has at most 2**31 - 1 tokens.
            rng: `numpy.random.Generator`, the only source of randomness.
            keys: int `[batch_size, key_length]`, or `[batch_size, num_keys, key_length]` if there are several, digits 0
                to 9, or None for new random keys.
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
        batch_size, blocks = self._check_batch(batch_size, blocks)
        check_generator("rng", rng)
        question_rate = check_rates("question_rate", question_rate, batch_size)
        introduce = self._check_introduce(introduce, batch_size)
        if keys is None:
            if not introduce.all():
                raise ValueError("`keys` must be given if `introduce` is False. Received: keys=None.")
            keys = new_keys(self, rng, batch_size)
        else:
            keys = self._check_keys(keys, batch_size)
        check_probability("answer_noise", answer_noise)
        phases = new_phases(self, rng, batch_size)
        stated = np.repeat(introduce[:, None], self.num_keys, axis=1)
        keys = Keys(keys, keys, stated, np.zeros(batch_size, int))
        return write_examples(self, rng, blocks, keys, phases, question_rate, answer_noise)

    def prompt(self, batch_size: int, blocks: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Texts that end in a question without its answer.

        Args:
            batch_size: int.
            blocks: int, blocks in front of the question. The batch has at most 2**31 - 1 tokens.
            rng: `numpy.random.Generator`, the only source of randomness.

        Returns:
            `(token_ids, keys)`: int32 `[batch_size, blocks * block_size + 1]`, with the statement at a random place in
            the first block and the ASK marker at the end, and int64 `[batch_size, key_length]`, digits 0 to 9. Of
            several keys, the marker asks for a random one, and `keys` holds that one.

        Raises:
            TypeError, ValueError: an argument of another type or out of range.
        """
        self._check_batch(batch_size, blocks)
        pieces, keys = self.prompt_blocks(batch_size, blocks, rng)
        return np.concatenate(list(pieces), axis=1), keys

    def prompt_blocks(
        self, batch_size: int, blocks: int, rng: np.random.Generator
    ) -> tuple[Iterator[np.ndarray], np.ndarray]:
        """The same texts as `prompt`, made block by block: for texts too long to hold at once.

        Args:
            batch_size: int.
            blocks: int, blocks in front of the question, at most 2**31 - 1.
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
        batch_size, blocks = self._check_blocks(batch_size, blocks)
        check_generator("rng", rng)
        keys, phases = new_keys(self, rng, batch_size), new_phases(self, rng, batch_size)
        starts = new_statement_starts(self, rng, batch_size, self.block_size - self.statement_length + 1)
        names = rng.integers(self.num_keys, size=batch_size)
        own = np.random.default_rng(rng.integers(2**63))
        return prompt_pieces(self, blocks, keys, phases, starts, names, own), keys[np.arange(batch_size), names]

    def question_blocks(
        self,
        batch_size: int,
        blocks: int,
        rng: np.random.Generator,
        distances: Sequence[int] = (2, 8, 36, 128, 600),
        restate: bool = True,
    ) -> Iterator[PassKeyBlock]:
        """Long texts with questions about the key stated last, block by block: to evaluate memory that is overwritten.

        All keys are stated in the first block, and later one of them anew, with new random digits, at a random place
        of its block: each row draws how many blocks pass between two statements from `distances`. The text itself holds
        no question. Rows are to be asked aside, behind the blocks where a key's statement is one of `distances` blocks
        old: on a state that is then dropped, so that no answer is read into memory. Nothing is held but the block at
        hand.

        Args:
            batch_size: int, rows, each with a text and times of its own.
            blocks: int, blocks to make, at most 2**31 - 1.
            rng: `numpy.random.Generator`, the only source of randomness; all that is drawn from it is drawn at once.
            distances: ints, the ages of a statement at which it is asked for, in blocks, its own block included.
            restate: bool. False states every key once, in the first block: can memory hold it?

        Returns:
            iterator over `blocks` of `PassKeyBlock`. See `PassKeyScores`, which counts the answers.

        Raises:
            TypeError, ValueError: an argument of another type or out of range.

        Example:

        ```python
        task = keras_fam.data.PassKeyTask(block_size=32, key_length=2)
        scores = keras_fam.data.PassKeyScores(task, distances=(2, 8), ages=(1, 10))
        state = lm.initial_state(batch_size=4)
        for block in task.question_blocks(batch_size=4, blocks=20, rng=np.random.default_rng(0), distances=(2, 8)):
            _, state = lm.stream(block.token_ids, state)
            if block.asked.any():
                token_ids, aside, answers = block.question_ids, state, []
                for _ in range(task.key_length):
                    logits, aside = lm.stream(token_ids, aside)
                    token_ids = np.argmax(keras.ops.convert_to_numpy(logits)[:, -1:], axis=-1).astype("int32")
                    answers.append(token_ids)
                scores.add(block, np.concatenate(answers, axis=1))
        scores.table()
        ```
        """
        batch_size, blocks = self._check_blocks(batch_size, blocks)
        check_generator("rng", rng)
        distances = check_sizes("distances", distances)
        restate = check_flag("restate", restate)
        return question_blocks(self, batch_size, blocks, np.random.default_rng(rng.integers(2**63)), distances, restate)

    def stream(
        self,
        batch_size: int,
        blocks: int,
        restart: float | Sequence[float],
        seed: int,
        question_rate: float | Sequence[float] = 0.0,
        answer_noise: float = 0.0,
        restate: float | Sequence[float] = 0.0,
        parts: int = 1,
    ) -> PassKeyStream:
        """Endless texts for training with carried state: each row goes on from batch to batch until it restarts.

        Args:
            batch_size: int.
            blocks: int, blocks per batch.
            restart: float, probability that a row begins a new text with a new key at a batch, or one for each row.
            seed: int, at least 0.
            question_rate: float, see `examples`; of a sequence, each row and batch draws one.
            answer_noise: float, see `examples`.
            restate: float, probability that a row that does not restart states a new key in a batch, or one for each
                row: its memory then has to let the old key go. The statement lies in any block but the last, and
                questions before it ask for the old key. Of several keys, a random one is stated anew, and memory has
                to keep the others.
            parts: int, a divisor of `blocks`. A batch has so many parts of equal length, and a row may state a new key
                in each: long batches then state as many keys as short ones. Rows restart in the first part alone, are
                always asked at the end of the last alone, and draw one question rate for all.

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
        return PassKeyStream(self, batch_size, blocks, restart, seed, question_rate, answer_noise, restate, parts)

    # === Checks ===

    def _check_blocks(self, batch_size, blocks):
        """Of texts made block by block."""
        batch_size = check_integer("batch_size", batch_size, 1)
        check_size(batch_size=batch_size, block_size=self.block_size)
        return batch_size, check_integer("blocks", blocks, 1, MAX_INT)

    def _check_batch(self, batch_size, blocks):
        """Of texts made at once."""
        batch_size, blocks = check_integer("batch_size", batch_size, 1), check_integer("blocks", blocks, 1)
        check_size(batch_size=batch_size, blocks=blocks, block_size=self.block_size)
        return batch_size, blocks

    def _check_digits(self, keys):
        return check_integers("keys", keys, 0, 9)

    def _check_keys(self, keys, batch_size):
        """`[batch_size, num_keys, key_length]`, of digits."""
        keys = self._check_digits(keys)
        names = () if self.num_keys == 1 else (self.num_keys,)
        if keys.shape != (batch_size, *names, self.key_length):
            raise ValueError(
                f"`keys` must have shape [batch_size, {'num_keys, ' if names else ''}key_length], "
                f"{(batch_size, *names, self.key_length)}. Received: keys of shape {keys.shape}."
            )
        return keys.reshape(batch_size, self.num_keys, self.key_length)

    def _check_introduce(self, introduce, batch_size):
        array = to_array("introduce", introduce)
        if array.dtype != bool:
            raise TypeError(
                f"`introduce` must be True or False, or one for each row. Received: introduce={introduce!r}."
            )
        if array.shape not in ((), (batch_size,)):
            raise ValueError(
                f"`introduce` must be one bool or of shape ({batch_size},). Received: introduce of shape {array.shape}."
            )
        return np.broadcast_to(array, (batch_size,))
