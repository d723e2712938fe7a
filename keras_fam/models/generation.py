"""Generation in a state of fixed size: the prompt is read block by block, then a KerasHub sampler takes over."""

import keras_hub
from keras import ops


def generate_tokens(lm, token_ids, padding_mask, stop_token_ids):
    """See `FAMCausalLM.generate_step`."""
    padding_mask = ops.cast(padding_mask, "bool")
    # Start at the first index that some row has no token for.
    index = ops.min(ops.sum(ops.cast(padding_mask, "int32"), axis=-1))
    hidden_states, state = _read_prompt(lm, token_ids, index)
    # The contrastive sampler goes back to the state before a token; all others only go on.
    in_place = not isinstance(lm.sampler, keras_hub.samplers.ContrastiveSampler)

    def next(prompt, cache, index):
        batch_size = ops.shape(prompt)[0]
        token = ops.slice(prompt, [0, index - 1], [batch_size, 1])
        hidden, cache = _read_token(lm.backbone, token, cache, in_place)
        logits = lm.backbone.logits(hidden)
        return ops.squeeze(logits, axis=1), ops.squeeze(hidden, axis=1), cache

    token_ids = lm.sampler(
        next=next,
        prompt=token_ids,
        cache=state,
        index=index,
        mask=padding_mask,
        stop_token_ids=stop_token_ids,
        hidden_states=hidden_states,
        model=lm,
    )
    if stop_token_ids is None:
        return {"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids, dtype="bool")}
    stops = ops.cast(ops.convert_to_tensor(list(stop_token_ids)), token_ids.dtype)
    ends = ops.any(token_ids[..., None] == stops, axis=-1)
    ends = ops.cast(ops.logical_and(ends, ops.logical_not(padding_mask)), "int32")
    after = ops.cast(ops.cumsum(ends, axis=-1), "int32") - ends
    return {"token_ids": token_ids, "padding_mask": after == 0}


def _read_token(backbone, token, state, in_place):
    """One token of every row, `[b, 1]`; FAM is updated when it fills its block."""
    last = (state.position[0] + 1) % backbone.block_size == 0
    return backbone.piece(token, ops.ones_like(token, dtype="bool"), state, last, in_place=in_place)


def _read_prompt(lm, token_ids, index):
    """Reads all but the last of the first `index` tokens into a new state, in blocks.

    Args:
        lm: `FAMCausalLM`.
        token_ids: int `[b, length]`.
        index: int scalar tensor.

    Returns:
        `(hidden_states, state)`: for the contrastive sampler, which looks back at all of them, the hidden states
        `[b, length, d]` of the first `index` tokens; None for any other.
    """
    backbone = lm.backbone
    size, (batch, length) = backbone.block_size, ops.shape(token_ids)
    keep_hidden = isinstance(lm.sampler, keras_hub.samplers.ContrastiveSampler)
    blocks = -(-length // size)
    padded = ops.pad(token_ids, [[0, 0], [0, blocks * size - length]])
    real = ops.ones((batch, size), "bool")
    read = ops.maximum(index - 1, 0)
    full = read // size

    def read_block(block, state, hidden_states, **options):
        ids = ops.slice(padded, [0, block * size], [batch, size])
        hidden, state = backbone.piece(ids, real, state, in_place=True, **options)
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
