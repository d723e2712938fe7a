"""Generation in a state of fixed size: the prompt is read block by block, then a KerasHub sampler takes over."""

from typing import NamedTuple

import keras
import keras_hub
from keras import ops

from keras_fam.backend.buffers import own_arrays
from keras_fam.types import Tensor

# Their loops never go back to an earlier state, so its arrays may be overwritten. Others' might.
_FORWARD_LOOPS = (keras_hub.samplers.Sampler.__call__, keras_hub.samplers.BeamSampler.__call__)


class Prompt(NamedTuple):
    """A batch of prompts, with room for what is generated.

    Attributes:
        token_ids: int `[b, length]`.
        given: bool `[b, length]`, places up to the end of a row's prompt; padding before it and inside it too.
        read: bool `[b, length]`, places that are read as text: real tokens, and all behind the prompt.
        index: int scalar, the first place that some row has no token for.
    """

    token_ids: Tensor
    given: Tensor
    read: Tensor
    index: Tensor


def generate_tokens(lm, inputs, stop_token_ids):
    """See `FAMCausalLM.generate_step`."""
    token_ids, real = inputs["token_ids"], ops.cast(inputs["padding_mask"], "bool")
    places = ops.arange(ops.shape(real)[1])[None]
    ends = ops.max(ops.where(real, places + 1, 0), axis=1)
    given = places < ends[:, None]
    prompt = Prompt(token_ids, given, ops.logical_or(real, ops.logical_not(given)), ops.min(ends))
    in_place = type(lm.sampler).__call__ in _FORWARD_LOOPS
    if "state" in inputs:  # It has read all but the last of the first `index` tokens, and is the caller's.
        hidden_states, state = inputs.get("hidden_states"), own_arrays(inputs["state"])
    else:
        hidden_states, state = _read_prompt(lm, prompt)
    arrays = keras.tree.flatten(state)

    def next(tokens, cache, index):
        rows = ops.shape(tokens)[0]
        token = ops.slice(tokens, [0, index - 1], [rows, 1])
        mask = _for_beams(ops.slice(prompt.read, [0, index - 1], [ops.shape(prompt.read)[0], 1]), rows)
        cache = keras.tree.pack_sequence_as(state, _with_empty(cache, arrays))
        hidden, cache = _read_token(lm.backbone, token, mask, cache, in_place)
        logits = lm.backbone.logits(hidden)
        return ops.squeeze(logits, axis=1), ops.squeeze(hidden, axis=1), _without_empty(keras.tree.flatten(cache))

    token_ids = lm.sampler(
        next=next,
        prompt=token_ids,
        cache=_without_empty(arrays),
        index=prompt.index,
        mask=given,
        stop_token_ids=stop_token_ids,
        hidden_states=hidden_states,
        model=lm,
    )
    if stop_token_ids is None:
        return {"token_ids": token_ids, "padding_mask": prompt.read}
    stops = ops.cast(ops.convert_to_tensor(list(stop_token_ids)), token_ids.dtype)
    ends = ops.any(token_ids[..., None] == stops, axis=-1)
    ends = ops.cast(ops.logical_and(ends, ops.logical_not(given)), "int32")
    after = ops.cast(ops.cumsum(ends, axis=-1), "int32") - ends
    return {"token_ids": token_ids, "padding_mask": ops.logical_and(prompt.read, after == 0)}


def _for_beams(mask, rows):
    """A mask `[b, 1]` of prompts for `rows` texts, each prompt's beams one after another."""
    prompts = ops.shape(mask)[0]
    if isinstance(rows, int) and prompts == rows:
        return mask
    return ops.take(mask, ops.arange(rows) * prompts // rows, axis=0)


def _without_empty(arrays):
    """The arrays of a state that hold anything. Samplers reshape what they carry by -1, which no empty array allows."""
    return tuple(x for x in arrays if 0 not in x.shape)


def _with_empty(carried, arrays):
    """All arrays of a state of `carried`, in the place of those of `arrays`."""
    carried = list(carried)
    rows = ops.shape(carried[0])[0]
    return [ops.zeros((rows, *x.shape[1:]), x.dtype) if 0 in x.shape else carried.pop(0) for x in arrays]


def _read_token(backbone, token, mask, state, in_place):
    """One token of every row, `[b, 1]`; FAM is updated when it fills its block."""
    last = (state.position[0] + 1) % backbone.block_size == 0
    return backbone.piece(token, mask, state, last, in_place=in_place)


def _read_prompt(lm, prompt):
    """Reads all but the last of the first `index` tokens into a new state, in blocks.

    Args:
        lm: `FAMCausalLM`.
        prompt: `Prompt`.

    Returns:
        `(hidden_states, state)`: for the contrastive sampler, which looks back at all of them, the hidden states
        `[b, length, d]` of the first `index` tokens; None for any other.
    """
    backbone = lm.backbone
    size, (batch, length) = backbone.block_size, ops.shape(prompt.token_ids)
    keep_hidden = isinstance(lm.sampler, keras_hub.samplers.ContrastiveSampler)
    blocks = -(-length // size)
    padded, real = (ops.pad(x, [[0, 0], [0, blocks * size - length]]) for x in (prompt.token_ids, prompt.read))
    read = ops.maximum(prompt.index - 1, 0)
    full = read // size

    def read_block(block, state, hidden_states, **options):
        ids, mask = (ops.slice(x, [0, block * size], [batch, size]) for x in (padded, real))
        hidden, state = backbone.piece(ids, mask, state, in_place=True, **options)
        if keep_hidden:
            hidden_states = ops.slice_update(hidden_states, [0, block * size, 0], hidden)
        return block + 1, state, hidden_states

    hidden_states = ops.zeros((batch, blocks * size if keep_hidden else 0, backbone.hidden_dim), backbone.compute_dtype)
    loop = (ops.zeros_like(full), backbone.begin(batch), hidden_states)
    block, state, hidden_states = ops.while_loop(
        lambda block, *_: block < full, lambda *loop: read_block(*loop, last=True), loop
    )
    _, state, hidden_states = read_block(block, state, hidden_states, last=False, count=read - full * size)
    return (hidden_states[:, :length] if keep_hidden else None), state
