"""What the scripts here measure on a causal LM with real weights."""

import random

import numpy as np
from keras import ops

ROUND_TRIPS = {
    "ASCII": "The quick brown fox, it's said, jumped (twice!) over the lazy dog.",
    "non-ASCII": "Übergrößenträger, ça va? Привет, мир. 你好，世界。 السلام 👩‍👧 𓂀",
    "digits": "3.14159 2024-11-25 1234567890 ½ ²",
    "spaces": " one  two   three        eight ",
    "newlines": "a\nb\n\nc\n\n\n\td\r\n",
}
SPECIAL_TOKENS = ["<start_of_turn>", "<end_of_turn>", "<unused7>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def start_and_text(model, text, length):
    """The start token and the first tokens of a text: int32, `(1, length)`."""
    tokenizer = model.preprocessor.tokenizer
    ids = [tokenizer.start_token_id, *np.asarray(tokenizer.tokenize(text))]
    if len(ids) < length:
        raise ValueError(f"The text must have {length - 1} tokens. Received: {len(ids) - 1}")
    return np.array([ids[:length]], "int32")


def nats_per_token(model, ids, piece=128):
    """Mean cross-entropy of all tokens but the first, the model seeing all before them at once.

    Args:
        model: a causal LM.
        ids: int32, `(1, length)`.
        piece: int. For so many positions at a time logits are computed: a row of 262,144 is a megabyte.
    """
    hidden = model.backbone.predict({"token_ids": ids, "padding_mask": np.ones_like(ids)}, verbose=0)
    total = 0.0
    for start in range(0, ids.shape[1] - 1, piece):
        targets = ids[0, start + 1 : start + 1 + piece]
        logits = model.backbone.token_embedding(hidden[0, start : start + len(targets)], reverse=True)
        logits = ops.convert_to_numpy(logits).astype("float64")
        logits -= logits.max(axis=-1, keepdims=True)
        total += (np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(targets)), targets]).sum()
    return total / (ids.shape[1] - 1)


def shuffled_words(text, seed=0):
    """The words of a text in random order."""
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


def continued(model, prompt, length):
    """Prompt and greedy continuation, `length` tokens in all."""
    model.compile(sampler="greedy")
    return model.generate(prompt, max_length=length)


def broken_round_trips(tokenizer):
    """What does not come back from the tokenizer as it went in: names of `ROUND_TRIPS` and special tokens."""
    broken = [name for name, text in ROUND_TRIPS.items() if tokenizer.detokenize(tokenizer.tokenize(text)) != text]
    known = [token for token in SPECIAL_TOKENS if token in set(tokenizer.get_vocabulary())]
    for token in known:
        ids = np.asarray(tokenizer.tokenize(f"a{token}b"))
        if tokenizer.token_to_id(token) not in ids or tokenizer.detokenize(ids) != f"a{token}b":
            broken.append(token)
    return broken
