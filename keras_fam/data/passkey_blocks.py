"""Texts whose keys are stated again and again, one block at a time, with what to ask behind each block."""

from typing import NamedTuple

import numpy as np

from keras_fam.data.passkey_writing import (
    new_keys,
    new_phases,
    new_statement_starts,
    write_filler,
    write_keys,
    write_statements,
)


class PassKeyBlock(NamedTuple):
    """One block of the texts of `PassKeyTask.question_blocks`, and what to ask behind it.

    `key` means the key that a row may be asked for here; values of rows that are not to be asked are of a random key.

    Attributes:
        token_ids: int32 `[batch_size, block_size]`.
        asked: bool `[batch_size]`, rows to be asked behind this block.
        question_ids: int32 `[batch_size, 1]`, the ASK marker of the key.
        keys: int64 `[batch_size, key_length]`, digits of the key as it was stated last.
        previous_keys: int64 `[batch_size, key_length]`, its digits before, -1 where it was stated only once.
        distance: int64 `[batch_size]`, blocks since its last statement, the statement's own and this one included.
        age: int64 `[batch_size]`, blocks of the text up to that statement's own, which is included: 1 for the first.
        others: int64 `[batch_size]`, how often other keys were stated since.
        blocks: int, blocks of the text so far, this one included: `age + distance - 1`.
    """

    token_ids: np.ndarray
    asked: np.ndarray
    question_ids: np.ndarray
    keys: np.ndarray
    previous_keys: np.ndarray
    distance: np.ndarray
    age: np.ndarray
    others: np.ndarray
    blocks: int


def question_blocks(task, batch_size, blocks, rng, distances, restate):
    """See `PassKeyTask.question_blocks`: arguments are checked, and all draws are made for every row and block."""
    every, room = np.arange(batch_size), task.block_size - task.statement_length + 1
    keys, phases = new_keys(task, rng, batch_size), new_phases(task, rng, batch_size)
    previous = np.full_like(keys, -1)
    stated, others = (np.zeros((batch_size, task.num_keys), int) for _ in range(2))  # in which block; how many since
    due = rng.choice(distances, batch_size)  # the block of each row's next statement
    first = new_statement_starts(task, rng, batch_size, room)
    for block in range(blocks):
        token_ids = write_filler(task, rng, phases + block * task.block_size, task.block_size)
        restated, new_names = new_keys(task, rng, batch_size)[:, 0], rng.integers(task.num_keys, size=batch_size)
        starts, gaps = rng.integers(room, size=batch_size), rng.choice(distances, batch_size)
        if block == 0:
            write_statements(task, token_ids, first, np.ones_like(first), keys)
        rows = np.flatnonzero((due == block) & restate)
        names = new_names[rows]
        previous[rows, names], keys[rows, names] = keys[rows, names], restated[rows]
        others[rows] += 1
        others[rows, names], stated[rows, names], due[rows] = 0, block, block + gaps[rows]
        write_keys(task, token_ids, rows, starts[rows], task.key_ids[names], restated[rows])
        distance = block + 1 - stated
        asked = np.isin(distance, distances)
        one = every, np.argmax(asked + rng.random(asked.shape), axis=1)  # a key to be asked for, if there is one
        yield PassKeyBlock(
            token_ids,
            asked[one],
            task.ask_ids[one[1]][:, None],
            keys[one],
            previous[one],
            distance[one],
            stated[one] + 1,
            others[one],
            block + 1,
        )
