"""Answers to questions about keys, counted by how long a key was held and how old the text was."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_fam.data.checks import check_integers, check_sizes
from keras_fam.data.passkey_blocks import PassKeyBlock
from keras_fam.types import Tensor


class PassKeyScore(NamedTuple):
    """The answers of one group, as `PassKeyScores.table` gives them.

    Attributes:
        age: int, the group's lowest age of the text at the statement, in blocks.
        distance: int, the group's shortest distance from the statement, in blocks.
        count: int, questions.
        right: float, share of answers in which every digit is right.
        previous: float, share of answers that are the key's digits before it was stated anew: it was not let go.
    """

    age: int
    distance: int
    count: int  # type: ignore[assignment]  # A tuple's own `count` is of no use here.
    right: float
    previous: float


class PassKeyScores:
    """Counts whole keys that are answered right, by distance and by age, over the blocks of one evaluation.

    Groups reach from each of `distances`, and each of `ages`, up to the next; the last has no end. What lies below the
    first is not counted.

    Args:
        task: `PassKeyTask`, whose texts are read.
        distances: ints, the shortest distance of each group.
        ages: ints, the lowest age of each group. See `PassKeyBlock` for both.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.

    Example:

    ```python
    task = keras_fam.data.PassKeyTask(block_size=32)
    scores = keras_fam.data.PassKeyScores(task)
    for block in task.question_blocks(batch_size=8, blocks=200, rng=np.random.default_rng(0)):
        if block.asked.any():
            scores.add(block, task.answers(block.keys))  # a model's answers in place of these
    for score in scores.table():
        print(score.age, score.distance, score.count, score.right, score.previous)
    ```
    """

    def __init__(
        self,
        task: Any,
        distances: Sequence[int] = (2, 8, 36, 128, 600),
        ages: Sequence[int] = (1, 100, 1000, 5000),
    ):
        if not hasattr(task, "digit_ids"):
            raise TypeError(f"`task` must be a PassKeyTask. Received: task={task!r} of type {type(task).__name__}.")
        self.task = task
        self.distances, self.ages = check_sizes("distances", distances), check_sizes("ages", ages)
        self._counts = np.zeros((3, len(self.ages), len(self.distances)), int)  # asked, right, previous

    def add(self, block: PassKeyBlock, answers: Tensor) -> None:
        """Counts the answers of the rows that `block` asks.

        Args:
            block: `PassKeyBlock`.
            answers: int `[batch_size, key_length]`, the token ids that were answered; rows not asked are not looked at.

        Raises:
            TypeError, ValueError: an argument of another type, shape or range.
        """
        if not isinstance(block, PassKeyBlock):
            raise TypeError(f"`block` must be a PassKeyBlock. Received: {block!r} of type {type(block).__name__}.")
        answers = check_integers("answers", answers, 0, self.task.vocabulary_size - 1)
        if answers.shape != block.keys.shape:
            raise ValueError(
                f"`answers` must have shape [batch_size, key_length], {block.keys.shape}. Received: answers of shape "
                f"{answers.shape}."
            )
        digits = answers - self.task.digit_ids[0]
        right = (digits == block.keys).all(axis=1)
        previous = ((digits == block.previous_keys) & (digits >= 0)).all(axis=1)  # -1 says that there was none
        age = np.searchsorted(self.ages, block.age, "right") - 1
        distance = np.searchsorted(self.distances, block.distance, "right") - 1
        counted = block.asked & (age >= 0) & (distance >= 0)
        for count, rows in zip(self._counts, (counted, counted & right, counted & previous & ~right)):
            np.add.at(count, (age[rows], distance[rows]), 1)

    def table(self) -> list[PassKeyScore]:
        """The groups that were asked at least once, by age and then by distance."""
        return [
            PassKeyScore(int(age), int(distance), int(count), float(right / count), float(previous / count))
            for i, age in enumerate(self.ages)
            for j, distance in enumerate(self.distances)
            for count, right, previous in [self._counts[:, i, j]]
            if count
        ]
