"""What `generate` is given: checked on the host, before anything is compiled."""

import keras_hub
import numpy as np
from keras import ops

from keras_fam.checks import check_integer, check_ones_and_zeros, check_padding_mask, check_token_ids, check_vocabulary


def are_ids(inputs):
    """Whether `inputs` are token ids already, and need no preprocessing."""
    return isinstance(inputs, dict) and "token_ids" in inputs


def as_texts(inputs):
    """Arrays and lists of texts or bytes as lists of str; anything else as it is."""
    if isinstance(inputs, list):
        return [as_texts(each) for each in inputs]
    if isinstance(inputs, bytes):
        return inputs.decode("utf-8")
    texts = isinstance(inputs, np.ndarray) and inputs.dtype.kind in "USO"
    return as_texts(inputs.tolist()) if texts else inputs


def check_lengths(max_length, max_new_tokens):
    """Refuses lengths that are no integers of at least 1, and both at once."""
    for name, value in (("max_length", max_length), ("max_new_tokens", max_new_tokens)):
        if value is not None:
            check_integer(name, value, 1)
    if max_length is not None and max_new_tokens is not None:
        raise ValueError(
            "`max_length` and `max_new_tokens` must not both be given. Received: "
            f"max_length={max_length}, max_new_tokens={max_new_tokens}."
        )


def check_sampler(sampler):
    """Refuses a sampler that returns something else than one text a prompt."""
    if getattr(sampler, "return_all_beams", False):
        raise ValueError(
            "`sampler` must return one text for each prompt: expected BeamSampler(return_all_beams=False). Received: "
            "return_all_beams=True."
        )


def check_stop_tokens(stop_token_ids, vocabulary_size):
    """Tokens that end a text.

    Args:
        stop_token_ids: int, any collection of int, None, or `"auto"`.
        vocabulary_size: int.

    Returns:
        Tuple of int; None if there are none; `"auto"`.
    """
    if stop_token_ids is None or (isinstance(stop_token_ids, str) and stop_token_ids == "auto"):
        return stop_token_ids
    wanted = "`stop_token_ids` must be 'auto', None, a token id or a collection of token ids. Received: stop_token_ids="
    if isinstance(stop_token_ids, (str, bytes, dict)):
        raise TypeError(f"{wanted}{stop_token_ids!r} of type {type(stop_token_ids).__name__}.")
    if isinstance(stop_token_ids, (set, frozenset)):
        stop_token_ids = list(stop_token_ids)
    try:
        ids = ops.convert_to_numpy(stop_token_ids) if ops.is_tensor(stop_token_ids) else np.asarray(stop_token_ids)
    except ValueError as error:
        raise TypeError(f"{wanted}{stop_token_ids!r} ({error}).") from error
    if ids.size == 0:
        return None
    if ids.dtype.kind not in "iu" or ids.ndim > 1:
        raise TypeError(f"{wanted}{stop_token_ids!r}.")
    check_vocabulary(ids, vocabulary_size, "stop_token_ids")
    return tuple(sorted({int(each) for each in ids.ravel()}))


def prepare_ids(inputs, vocabulary_size, max_length=None, max_new_tokens=None):
    """Token ids with room for what is generated.

    Args:
        inputs: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`.
        vocabulary_size: int.
        max_length: int or None: what they are padded or cut to.
        max_new_tokens: int or None: how many places there are behind the longest prompt.

    Returns:
        dict of an int array and a bool array, `[batch, max_length]`.
    """
    ids = check_token_ids(inputs["token_ids"], vocabulary_size)
    if "padding_mask" not in inputs:
        raise ValueError(f"`inputs` must have the key 'padding_mask'. Received: keys {sorted(inputs)}.")
    mask = check_padding_mask(inputs["padding_mask"], ids)
    mask = check_ones_and_zeros("padding_mask", mask, tuple(ids.shape))
    ids = ops.convert_to_numpy(ids) if ops.is_tensor(ids) else np.asarray(ids)
    if max_new_tokens is not None:
        max_length = int(ends_of(mask).max(initial=0)) + max_new_tokens
    if max_length is not None:
        ids, mask = (_resized(x, max_length) for x in (ids, mask))
    return {"token_ids": ids, "padding_mask": mask}


def check_prompt(inputs, sampler, vocabulary_size):
    """Refuses prompts without one real token, and those that a sampler cannot look back at.

    Args:
        inputs: dict of `"token_ids"` and `"padding_mask"`, `[batch, length]`, concrete.
        sampler: `keras_hub.samplers.Sampler`.
        vocabulary_size: int.
    """
    ids = check_token_ids(inputs["token_ids"], vocabulary_size)
    mask = check_ones_and_zeros("padding_mask", inputs["padding_mask"], tuple(ids.shape))
    empty = np.flatnonzero(~mask.any(axis=1)) if mask.size else np.arange(1)
    if empty.size:
        raise ValueError(
            "`padding_mask` must have at least one real token in every row, to go on from. Received: row "
            f"{int(empty[0])} of {mask.shape[0]} without one."
        )
    inside = np.flatnonzero(ends_of(mask) != mask.sum(axis=1))
    if inside.size and isinstance(sampler, keras_hub.samplers.ContrastiveSampler):
        raise ValueError(
            "`padding_mask` must have its padding behind each prompt for a ContrastiveSampler, which compares with all "
            f"tokens before. Received: row {int(inside[0])} with padding before or inside its prompt."
        )


def longest_text(preprocessor, texts):
    """Tokens of the longest of some texts, as the preprocessor makes them.

    Args:
        preprocessor: `keras_hub.models.CausalLMPreprocessor`.
        texts: str or list of str.

    Returns:
        int.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            "`inputs` must be a str or a list of str with `max_new_tokens`, so that their lengths are known. Received: "
            f"inputs of type {type(texts).__name__}."
        )
    room = 1 + max((len(row) for row in preprocessor.tokenizer(list(texts))), default=0)
    mask = preprocessor.generate_preprocess(list(texts), sequence_length=room)["padding_mask"]
    return int(np.asarray(ops.convert_to_numpy(mask)).sum(axis=1).max(initial=0))


def ends_of(mask):
    """The place behind each row's last real token, int `[batch]`."""
    return np.where(mask, np.arange(1, mask.shape[1] + 1), 0).max(axis=1, initial=0)


def without_prompts(outputs, mask):
    """What was generated alone, at the start of each row.

    Args:
        outputs: dict of `"token_ids"` and `"padding_mask"`, arrays `[batch, length]`, of finished texts.
        mask: bool array `[batch, length]`, the prompts.

    Returns:
        dict of the same shapes.
    """
    ends = ends_of(mask)[:, None]
    places = (np.arange(mask.shape[1]) + ends) % mask.shape[1]
    moved = {name: np.take_along_axis(x, places, axis=1) for name, x in outputs.items()}
    return {**moved, "padding_mask": moved["padding_mask"].astype("bool") & (places >= ends)}


def _resized(x, length):
    return np.pad(x[:, :length], [(0, 0), (0, max(0, length - x.shape[1]))])
