"""PassKey retrieval in text form, for pretrained models (the paper's section 3.2)."""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np

from keras_fam.checks import check_generator, check_integer
from keras_fam.data.checks import check_size
from keras_fam.data.tokenizing import check_tokenizer

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the important information there."
)
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
STATEMENT = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
MAX_DIGITS = 10_000


class PassKeyText(NamedTuple):
    """A text that asks for its pass key.

    Attributes:
        prompt: str, all up to the question.
        answer: str, a space and the key's digits: `prompt + answer` is a text to train on.
        key: str, the digits.
    """

    prompt: str
    answer: str
    key: str


def passkey_text(
    tokenizer: Any, blocks: int, block_size: int, key_length: int = 5, rng: np.random.Generator | None = None
) -> PassKeyText:
    """A PassKey text as long as fits in a number of blocks (section 3.2, after Mohtashami & Jaggi, arXiv 2305.16300).

    It has an introduction, filler, the statement of a random key, filler and a question. The statement lies in the
    first block, behind a random number of filler sentences; then come as many as fit.

    Args:
        tokenizer: a KerasHub tokenizer, or a callable from a str to tokens.
        blocks: int. Prompt and answer have at most `blocks * block_size` tokens, and less by no more than a filler
            sentence, and that is at most 2**31 - 1. Special tokens that a preprocessor adds are not counted.
        block_size: int, tokens per block.
        key_length: int, digits of the key, at most 10,000.
        rng: `numpy.random.Generator`, or None for a fresh one.

    Returns:
        `PassKeyText`.

    Raises:
        TypeError: no tokenizer, or one that gives no sequence of tokens; an argument of another type.
        ValueError: a tokenizer that pads, cuts or adds special tokens; blocks too short for the text without filler.

    Example:

    ```python
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    rng = np.random.default_rng(0)
    texts = [keras_fam.data.passkey_text(tokenizer, blocks=4, block_size=512, rng=rng) for _ in range(8)]
    strings = [text.prompt + text.answer for text in texts]  # for `fit`; `generate(text.prompt)` must say text.key
    ```
    """
    tokenize = check_tokenizer(tokenizer)
    blocks = check_integer("blocks", blocks, 1)
    block_size = check_integer("block_size", block_size, 1)
    check_size(blocks=blocks, block_size=block_size)
    key_length = check_integer("key_length", key_length, 1, MAX_DIGITS)
    rng = np.random.default_rng() if rng is None else check_generator("rng", rng)
    key = "".join(map(str, rng.integers(10, size=key_length)))
    statement, ending = STATEMENT.format(key=key), f"{QUESTION} {key}"

    def count(*parts):
        tokens = tokenize(_join(*parts))
        if not hasattr(tokens, "__len__") or len(getattr(tokens, "shape", [0])) != 1:
            raise TypeError(
                "`tokenizer` must give a sequence of tokens, [length]. Received: tokens of type "
                f"{type(tokens).__name__}{f' and shape {tokens.shape}' if hasattr(tokens, 'shape') else ''}."
            )
        return len(tokens)

    most = min(
        _most(lambda n: count(INTRODUCTION, _filler(n), statement), block_size),
        _most(lambda n: count(INTRODUCTION, _filler(n), statement, ending), blocks * block_size),
    )
    if most < 0:
        raise ValueError(
            f"`block_size` must hold the introduction and the key statement, {count(INTRODUCTION, statement)} tokens, "
            f"and `blocks * block_size` these and the question, {count(INTRODUCTION, statement, ending)} tokens. "
            f"Received: blocks={blocks}, block_size={block_size}."
        )
    before = _filler(int(rng.integers(most + 1)))
    after = _most(lambda n: count(INTRODUCTION, before, statement, _filler(n), ending), blocks * block_size)
    return PassKeyText(_join(INTRODUCTION, before, statement, _filler(after), QUESTION), f" {key}", key)


def _filler(sentences):
    return " ".join(islice(cycle(FILLER), sentences))


def _join(*parts):
    return "\n".join(part for part in parts if part)


def _most(length: Callable[[int], int], limit: int) -> int:
    """The largest n with `length(n) <= limit`, for a growing and nearly linear `length`; -1 if there is none."""
    low, low_length = -1, 0
    high, high_length = 0, length(0)
    while high_length <= limit:
        if high > limit:
            raise ValueError(
                "`tokenizer` must give more tokens for a longer text, at least one a sentence. Received: "
                f"{high_length} tokens for {high} sentences."
            )
        low, low_length = high, high_length
        high = 2 * high + 1
        high_length = length(high)
    while high - low > 1:  # length(low) <= limit < length(high)
        guess = low + (limit - low_length) * (high - low) // (high_length - low_length)
        guess = min(max(guess, low + 1), high - 1)
        guess_length = length(guess)
        if guess_length <= limit:
            low, low_length = guess, guess_length
        else:
            high, high_length = guess, guess_length
    return low
