"""A word of warning where texts are cut so short that most of them is never read."""

import warnings
from typing import Any

import numpy as np

from keras_fam.models.texts import are_texts, token_list

_TEXTS, _CHARACTERS = 8, 4096  # How much is tokenized to know how many characters a token has.


def warn_of_cut_texts(preprocessor: Any, texts: Any) -> bool:
    """Warns if a preprocessor keeps less than half of the tokens of texts that are given all at once.

    Args:
        preprocessor: `keras_hub.models.CausalLMPreprocessor`, or anything else, of which nothing is known.
        texts: list or array of texts, or anything else, which is left alone.

    Returns:
        Whether a warning was given.
    """
    length = getattr(preprocessor, "sequence_length", None)
    tokenizer = getattr(preprocessor, "tokenizer", None)
    texts = texts.tolist() if isinstance(texts, np.ndarray) and texts.ndim == 1 else texts
    if length is None or tokenizer is None or not are_texts(texts) or isinstance(texts, str):
        return False
    sizes = np.array([len(text) for text in texts])
    if sizes.max() <= length:
        return False
    samples = [texts[index][:_CHARACTERS] for index in np.argsort(-sizes)[:_TEXTS]]
    tokens = sizes * sum(len(token_list(tokenizer(each))) for each in samples) / sum(map(len, samples))
    share = np.minimum(tokens, length).sum() / max(tokens.sum(), 1)
    if share >= 0.5:
        return False
    warnings.warn(
        f"Of each text the first sequence_length={length} tokens are read, of these texts about {share:.0%}. To read "
        "more, raise `preprocessor.sequence_length`, or read files with `keras_fam.data.DocumentStream`.",
        stacklevel=5,
    )
    return True
