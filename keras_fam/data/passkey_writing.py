"""How the texts of a PassKeyTask are written: filler, and statements and questions over it."""

from typing import NamedTuple

import numpy as np


class Keys(NamedTuple):
    """What a batch of texts states, and is asked for.

    Attributes:
        latest: int `[batch_size, num_keys, key_length]`, digits after what is stated here.
        previous: the same, before it.
        stated: bool `[batch_size, num_keys]`, the keys that are stated here.
        blocks: int `[batch_size]`, the block in which each row states.
    """

    latest: np.ndarray
    previous: np.ndarray
    stated: np.ndarray
    blocks: np.ndarray


def new_keys(task, rng, batch_size):
    """Random digits, int64 `[batch_size, num_keys, key_length]`."""
    return rng.integers(10, size=(batch_size, task.num_keys, task.key_length))


def new_phases(task, rng, batch_size):
    """Where in the filler sentence each text begins."""
    return rng.integers(task.filler_length, size=batch_size)


def write_filler(task, rng, phases, length):
    """Token ids int32 `[batch, length]` of filler; each row begins at its place in the sentence, `phases` `[batch]`."""
    words = (phases[:, None] + np.arange(length)) % task.filler_length
    noisy = rng.random(words.shape) < task.noise
    return task.filler_ids[np.where(noisy, rng.integers(task.filler_length, size=words.shape), words)]


def new_statement_starts(task, rng, batch_size, room):
    """Where each key's statement begins in the first block, if one alone may begin in `room` places.

    Returns:
        int `[batch_size, num_keys]`, in any order, none over another.
    """
    room = room - (task.num_keys - 1) * task.statement_length
    starts = np.sort(rng.integers(room, size=(batch_size, task.num_keys)), axis=1)
    return rng.permuted(starts + np.arange(task.num_keys) * task.statement_length, axis=1)


def write_keys(task, token_ids, rows, starts, markers, keys):
    """Writes a marker and a key for each of `rows`, at `starts`; returns the rows and places."""
    places = starts[:, None] + np.arange(task.statement_length)
    token_ids[rows[:, None], places] = np.concatenate([markers[:, None], task.digit_ids[keys]], axis=1)
    return rows[:, None], places


def write_statements(task, token_ids, starts, stated, keys):
    """Writes the statements of the keys that `stated` names, `[batch, num_keys]`, as are `starts`."""
    rows, names = np.nonzero(stated)
    write_keys(task, token_ids, rows, starts[rows, names], task.key_ids[names], keys[rows, names])


def write_examples(task, rng, blocks, keys, phases, question_rate, answer_noise, final=True):
    """The arrays of `examples`; all draws are made for every row, whatever the row then uses. `keys` are `Keys`.

    `final`: the text ends in a question.
    """
    batch_size, size, length = len(phases), task.statement_length, blocks * task.block_size
    token_ids = write_filler(task, rng, phases, length)
    # Where each block's statement or question may begin: the last block's end belongs to the final question.
    room = np.full(blocks, task.block_size - size + 1)
    room[-1] -= size
    every = np.arange(batch_size)
    starts = np.arange(blocks) * task.block_size + rng.integers(room, size=(batch_size, blocks))
    asks = rng.random((batch_size, blocks)) < question_rate[:, None]
    asks[every, keys.blocks] &= ~keys.stated.any(axis=1)
    own = starts[every, keys.blocks][:, None]
    if task.num_keys > 1:
        own = keys.blocks[:, None] * task.block_size + new_statement_starts(task, rng, batch_size, room[0])
    write_statements(task, token_ids, own, keys.stated, keys.latest)
    rows, asking = np.nonzero(asks)
    starts, names = starts[asks], rng.integers(task.num_keys, size=(batch_size, blocks + 1))
    names, last = names[:, 1:][asks], names[:, 0]
    if final:
        rows, asking = np.append(rows, every), np.append(asking, np.full(batch_size, blocks))
        starts, names = np.append(starts, np.full(batch_size, length - size)), np.append(names, last)
    early = (asking < keys.blocks[rows])[:, None]
    answers = np.where(early, keys.previous[rows, names], keys.latest[rows, names])
    rows, places = write_keys(task, token_ids, rows, starts, task.ask_ids[names], answers)
    targets = np.zeros_like(token_ids)
    targets[:, :-1] = token_ids[:, 1:]
    weights = np.where(targets >= task.filler_ids[0], task.filler_weight, 0.0).astype("float32")
    weights[rows, places[:, :-1]] = 1.0
    noisy = rng.random(places[:, 1:].shape) < answer_noise
    answers = token_ids[rows, places[:, 1:]]
    token_ids[rows, places[:, 1:]] = np.where(noisy, task.digit_ids[rng.integers(10, size=noisy.shape)], answers)
    return token_ids, targets, weights


def prompt_pieces(task, blocks, keys, phases, starts, names, rng):
    """The pieces of `PassKeyTask.prompt_blocks`: statements at `starts` `[batch, num_keys]`, a question for `names`
    `[batch]`."""
    for block in range(blocks):
        token_ids = write_filler(task, rng, phases + block * task.block_size, task.block_size)
        if block == 0:
            write_statements(task, token_ids, starts, np.ones_like(starts), keys)
        yield token_ids
    yield task.ask_ids[names][:, None]
