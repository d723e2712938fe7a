"""How a task reads: a text into a state of fixed size, and what a model says behind it."""

from typing import Any

import keras_hub
import numpy as np
from keras import ops

from keras_fam.models.reading import token_chunks, token_losses

_AT_RANDOM = (keras_hub.samplers.RandomSampler, keras_hub.samplers.TopKSampler, keras_hub.samplers.TopPSampler)


def read_context(lm: Any, text: Any) -> tuple[Any, int]:
    """Reads all of a text but its last token, block by block, in memory of fixed size.

    Args:
        lm: `FAMCausalLM`.
        text: str, path-like or token ids; see `Example`.

    Returns:
        `(state, last)`: a `StreamState` of one row, and the last token.

    Raises:
        ValueError: a text without tokens, or token ids out of the vocabulary.
    """
    state, size = lm.initial_state(1), lm.backbone.block_size
    rest: list[int] = []
    for tokens in token_chunks(lm, text, "input"):
        rest = [*rest, *tokens]
        whole = max(0, len(rest) - 1) // size * size  # At least one token stays.
        if whole:
            state = lm.backbone.read_into(state, np.array([rest[:whole]], "int32"))
            rest = rest[whole:]
    if not rest:
        raise ValueError(f"`input` must hold at least one token. Received: {text!r:.80}.")
    if len(rest) > 1:
        state = lm.backbone.read_into(state, np.array([rest[:-1]], "int32"))
    return state, int(rest[-1])


def generate_behind(lm: Any, text: Any, max_new_tokens: int, stop: bool = True) -> list[int]:
    """The tokens that a model generates behind a text, up to its end token if `stop`."""
    state, last = read_context(lm, text)
    stops = lm._stop_tokens("auto") if stop else None
    prompt = {"token_ids": [[last]], "padding_mask": [[1]]}
    made = lm.generate(
        prompt, stop_token_ids=stops or None, strip_prompt=True, max_new_tokens=max_new_tokens, state=state
    )
    tokens = made["token_ids"][0][made["padding_mask"][0].astype("bool")].tolist()
    return [token for token in tokens if token not in (stops or ())]


def write_behind(lm: Any, text: Any, max_new_tokens: int) -> str:
    """`generate_behind` as text."""
    tokens = generate_behind(lm, text, max_new_tokens)
    return str(lm.preprocessor.tokenizer.detokenize(np.asarray(tokens, "int32"))) if tokens else ""


def nats_behind(lm: Any, state: Any, last: int, tokens: list[int]) -> float:
    """Minus the log likelihood of `tokens` behind a state and one more token."""
    logits, _ = lm.stream(np.array([[last, *tokens[:-1]]], "int32"), state)
    return float(ops.sum(token_losses(np.array([tokens], "int32"), ops.cast(logits, "float32"))))


def check_text_model(lm: Any) -> None:
    """Refuses a model that takes no text."""
    if lm.preprocessor is None:
        raise ValueError("`models` must have a preprocessor for a task of texts. Received: a model without.")


def check_generating_model(lm: Any) -> None:
    """Refuses a model that was not compiled, or that draws at random: its scores would not come out the same again."""
    sampler = getattr(lm, "sampler", None)
    if sampler is None or isinstance(sampler, _AT_RANDOM):
        raise ValueError(
            '`models` must be compiled with a sampler that draws nothing at random: `lm.compile(sampler="greedy")`. '
            f"Received: {'a model that was never compiled' if sampler is None else type(sampler).__name__}."
        )
