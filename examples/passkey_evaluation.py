"""What `passkey.py` asks of a trained model: streams in fixed memory, and whole keys that are generated."""

import collections

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


def asked(lm, options, blocks, distances, seed, restate):
    """Reads texts of `PassKeyTask.question_blocks`; wherever rows are asked, `(block, stated, state, tokens)`.

    `stated` int `[batch, block_size]` is the block that states the keys of rows which are asked at the shortest
    distance, `tokens` int `[batch, key_length]` are the answers of all rows.
    """
    task, state = options.task, lm.initial_state(options.keys)
    rng = np.random.default_rng([seed, 12345])
    latest = collections.deque(maxlen=min(distances))
    for block in task.question_blocks(options.keys, blocks, rng, distances, restate):
        _, state = lm.stream(block.token_ids, state)
        latest.append(block.token_ids)
        if block.asked.any():
            yield block, latest[0], state, generate_key(lm, task, block.question_ids, state)


def spread(state):
    """How far texts differ in what each layer's FAM holds.

    Args:
        state: `keras_fam.StreamState` of several texts; each layer's `fam` is `[texts, fam_length, dim]`.

    Returns:
        list of float, one a layer: the distance between the direction of a vector and its mean over texts, root mean
        square over vectors and texts. 0 if memory is the same whatever was read, 1 if directions are scattered evenly.
    """
    found = []
    for layer in state.layers:
        fam = keras.ops.convert_to_numpy(layer.fam)
        fam = fam / np.linalg.norm(fam, axis=-1, keepdims=True)
        found.append(float(np.sqrt(np.square(fam - fam.mean(axis=0)).sum(axis=-1).mean())))
    return found


def hold(lm, options, seed):
    """Keys are stated once, in the first block: `({blocks: whole keys right}, {blocks: spread of each layer})`."""
    scores, spreads = keras_fam.data.PassKeyScores(options.task, options.lengths, (1,)), {}
    for block, _, state, tokens in asked(lm, options, max(options.lengths), options.lengths, seed, restate=False):
        scores.add(block, tokens)
        if isinstance(state, keras_fam.StreamState) and state.layers[0].fam is not None:
            spreads[str(block.blocks)] = spread(state)
    return {str(score.distance): score.right for score in scores.table()}, spreads


class WrongByPlace:
    """Counts digits that are answered wrong, at the shortest distance, by where in its block their statement began.

    Args:
        task: `PassKeyTask`.
        distance: int, the shortest distance, in blocks.

    Attributes:
        questions: int `[num_keys, places]`.
        wrong: int `[num_keys, key_length, places]`.
    """

    def __init__(self, task, distance):
        self.task, self.distance = task, distance
        places = task.block_size - task.statement_length + 1
        self.questions = np.zeros((task.num_keys, places), int)
        self.wrong = np.zeros((task.num_keys, task.key_length, places), int)

    def add(self, block, stated, tokens):
        """Counts answers.

        Args:
            block: `PassKeyBlock`; its rows that are not asked, or at another distance, are not looked at.
            stated: int `[batch, block_size]`, the tokens of the blocks that state the keys which `block` asks for.
            tokens: int `[batch, key_length]`, what was answered.
        """
        rows = block.asked & (block.distance == self.distance)
        names = np.searchsorted(self.task.ask_ids, block.question_ids[rows, 0])
        places = np.argmax(stated[rows] == self.task.key_ids[names][:, None], axis=1)
        np.add.at(self.questions, (names, places), 1)
        right = tokens[rows] == self.task.answers(block.keys)[rows]
        np.add.at(self.wrong.transpose(0, 2, 1), (names, places), ~right)


def overwrite(lm, options, seed):
    """Keys are stated again and again at random distances, and the latest is asked for.

    The text goes on until the oldest age has been asked at the longest distance, by two statements a row on average.

    Returns:
        `({age: {distance: [questions, right, previous]}}, {"questions": [key][place], "wrong": [key][digit][place]})`,
        the second of `WrongByPlace`.
    """
    blocks = max(options.ages) + 2 * sum(options.distances)
    scores, table = keras_fam.data.PassKeyScores(options.task, options.distances, options.ages), {}
    by_place = WrongByPlace(options.task, min(options.distances))
    for block, stated, _, tokens in asked(lm, options, blocks, options.distances, seed, restate=True):
        scores.add(block, tokens)
        by_place.add(block, stated, tokens)
    for score in scores.table():
        table.setdefault(str(score.age), {})[str(score.distance)] = [score.count, score.right, score.previous]
    return table, {"questions": by_place.questions.tolist(), "wrong": by_place.wrong.tolist()}
