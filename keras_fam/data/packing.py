"""Token sequences with a loss weight for each token: repeated segments, and rows of a fixed length."""

from collections.abc import Iterable, Sequence

import numpy as np

from keras_fam.checks import check_generator, check_integer
from keras_fam.data.checks import (
    MAX_INT,
    MAX_WEIGHT,
    check_ids,
    check_iterable,
    check_loss_weight,
    to_array,
)
from keras_fam.types import Tensor


def repeat_random_segment(
    token_ids: Tensor,
    rng: np.random.Generator,
    segment_length: int = 256,
    prompt_ids: Sequence[int] = (),
    weight: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Repeats consecutive tokens of a random place at the end of a text: the paper's section 3.1.1.

    It teaches memory to hold what lies far back, at a small loss weight, so that copying does not outweigh language.

    Args:
        token_ids: int `[length]`, a text of at least `segment_length` tokens.
        rng: `numpy.random.Generator`.
        segment_length: int, tokens that are repeated.
        prompt_ids: int `[prompt_length]`, put between the text and the repetition: for example the tokens of
            `"[repeat random segment]:"`.
        weight: float, loss weight of the repeated tokens.

    Returns:
        `(token_ids, weights)`, int32 and float32 `[length + prompt_length + segment_length]`: weights are 1 for the
        text, 0 for the prompt and `weight` for the repetition. See `pack`.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range, ids beyond int32 among them; a text shorter
            than a segment.

    Example:

    ```python
    rng = np.random.default_rng(0)
    text = np.arange(1, 2000)
    token_ids, weights = keras_fam.data.repeat_random_segment(text, rng, prompt_ids=[2001, 2002])
    ```
    """
    token_ids = check_ids("token_ids", token_ids)
    check_generator("rng", rng)
    segment_length = check_integer("segment_length", segment_length, 1, MAX_INT)
    prompt_ids = check_ids("prompt_ids", prompt_ids)
    weight = check_loss_weight("weight", weight)
    if len(token_ids) < segment_length:
        raise ValueError(
            f"`token_ids` must have at least segment_length={segment_length} tokens. Received: {len(token_ids)} tokens."
        )
    start = rng.integers(len(token_ids) - segment_length + 1)
    segment = token_ids[start : start + segment_length]
    lengths = (len(token_ids), len(prompt_ids), segment_length)
    return np.concatenate([token_ids, prompt_ids, segment]), np.repeat(np.array([1.0, 0.0, weight], "float32"), lengths)


def pack(
    examples: Iterable[tuple[Tensor, Tensor]], length: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Packs examples one behind another into rows of one length, ready for `fit`.

    Examples keep their order. One that does not fit behind the last starts a new row, and what is left of the row is
    padding. One that is longer than a row is cut: it fills as many rows as it takes, each cut's next token is still the
    target there, and the next example goes behind its last piece if it fits. Nothing is dropped. A token sees and
    remembers the examples packed in front of it in its row; no loss weight lies on predicting an example's first token.

    Args:
        examples: `(token_ids, weights)` pairs, int and float `[example_length]`: what each token is, and the loss
            weight of predicting it. The weight of an example's first token is never used.
        length: int, tokens per row.

    Returns:
        `(inputs, targets, weights)`: inputs a dict of `"token_ids"` and `"padding_mask"` (1 for tokens, 0 for
        padding), int32 `[rows, length]`; targets, the next tokens, int32 `[rows, length]`; weights, float32
        `[rows, length]`, 0 on padding and on each example's last token.

    Raises:
        TypeError, ValueError: no examples, an empty one, or arrays of another dtype, shape or range.

    Example:

    ```python
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, size) for size in (20, 50, 30)]
    examples = [keras_fam.data.repeat_random_segment(text, rng, segment_length=8) for text in texts]
    inputs, targets, weights = keras_fam.data.pack(examples, length=64)
    lm.compile(optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lm.fit(inputs, targets, sample_weight=weights, verbose=0)  # an lm without a preprocessor
    ```
    """
    length = check_integer("length", length, 1, MAX_INT)
    examples = [
        _check_example(f"examples[{number}]", example)
        for number, example in enumerate(check_iterable("examples", examples))
    ]
    if not examples:
        raise ValueError("`examples` must hold at least one example. Received: none.")
    starts, end = [], 0  # places in all rows, read one behind another
    for token_ids, _ in examples:
        room = -end % length
        starts.append(end + room if len(token_ids) > room else end)
        end = starts[-1] + len(token_ids)
    rows = -(-end // length)
    token_ids, padding_mask, targets = (np.zeros(rows * length, "int32") for _ in range(3))
    weights = np.zeros(rows * length, "float32")
    for start, (ids, example_weights) in zip(starts, examples):
        stop = start + len(ids)
        token_ids[start:stop] = ids
        padding_mask[start:stop] = 1
        targets[start : stop - 1] = ids[1:]
        weights[start : stop - 1] = example_weights[1:]
    token_ids, padding_mask, targets, weights = (
        array.reshape(rows, length) for array in (token_ids, padding_mask, targets, weights)
    )
    return {"token_ids": token_ids, "padding_mask": padding_mask}, targets, weights


def _check_example(name, example):
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise TypeError(f"`{name}` must be a pair (token_ids, weights). Received: {type(example).__name__}.")
    token_ids, weights = check_ids(name, example[0]), to_array(name, example[1])
    if not len(token_ids):
        raise ValueError(f"`{name}` must have at least one token. Received: none.")
    if weights.shape != token_ids.shape:
        raise ValueError(
            f"`{name}` must have a weight for each of its {len(token_ids)} tokens. Received: weights of shape "
            f"{weights.shape}."
        )
    if weights.dtype.kind not in "fiu" or not ((weights >= 0) & (weights <= MAX_WEIGHT)).all():
        raise ValueError(f"`{name}` must have finite weights of at least 0. Received: weights {weights}.")
    return token_ids, weights
