"""What `passkey.py` asks of a trained model: streams in fixed memory, and whole keys that are generated."""

import keras
import numpy as np

import keras_fam


def generate_key(lm, task, question_ids, state):
    """The tokens `[batch, key_length]` that are generated after a question, on a state that stays as it is."""
    answers = [question_ids]
    for _ in range(task.key_length):
        logits, state = lm.stream(answers[-1], state)
        answers.append(np.argmax(keras.ops.convert_to_numpy(logits)[:, -1:], axis=-1).astype("int32"))
    return np.concatenate(answers[1:], axis=1)


def read(lm, options, blocks, distances, ages, seed, restate):
    """`{age: {distance: [questions, right, previous]}}` over the texts of `PassKeyTask.question_blocks`."""
    task, state = options.task, lm.initial_state(options.keys)
    scores = keras_fam.data.PassKeyScores(task, distances, ages)
    rng = np.random.default_rng([seed, 12345])
    for block in task.question_blocks(options.keys, blocks, rng, distances, restate):
        _, state = lm.stream(block.token_ids, state)
        if block.asked.any():
            scores.add(block, generate_key(lm, task, block.question_ids, state))
    table = {}
    for score in scores.table():
        table.setdefault(str(score.age), {})[str(score.distance)] = [score.count, score.right, score.previous]
    return table


def hold(lm, options, seed):
    """Share of whole keys right so many blocks after the only statement, in the first block: `{blocks: share}`."""
    table = read(lm, options, max(options.lengths), options.lengths, (1,), seed, restate=False)["1"]
    return {blocks: right for blocks, (_, right, _) in table.items()}


def overwrite(lm, options, seed):
    """Keys are stated again and again at random distances, and the latest is asked for; see `read`.

    The text goes on until the oldest age has been asked at the longest distance, by two statements a row on average.
    """
    blocks = max(options.ages) + 2 * sum(options.distances)
    return read(lm, options, blocks, options.distances, options.ages, seed, restate=True)
