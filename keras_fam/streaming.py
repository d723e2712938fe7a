"""The block-after-block form: pieces of at most a block through one layer, against buffers of fixed size.

Keys lie in a ring of m+1 blocks, rotated to the places inside their own block. What else lies between a query and a key
is how many blocks ago the key's was: a single query is turned by it, and for longer pieces the keys are turned back.
"""

from keras import ops

from keras_fam.feedback import FAM, identity, project_fam, update_fam
from keras_fam.kernels import attend_once
from keras_fam.ops import token_mask, write
from keras_fam.rotary import Rotation, turn
from keras_fam.state import LayerState


def initial_layer_state(attention, fam, batch_size, normalize=identity):
    """An empty stream's state at one layer.

    Args:
        attention: `FeedbackAttention`.
        fam: `[1, N, d]`, the prompt at this layer; N may be 0.
        batch_size: int or scalar tensor.
        normalize: callable, the layer's norm before attention.

    Returns:
        `LayerState`.
    """
    slots = (attention.memory_segments + 1) * attention.block_size
    shape = (batch_size, slots, attention.num_key_value_heads, attention.head_dim)
    buffer = ops.zeros(shape, attention.compute_dtype)
    fam = project_fam(attention, fam, None, _before(attention, fam.shape[1]), normalize)
    fam = (ops.broadcast_to(x, (batch_size, *x.shape[1:])) for x in (fam.vectors, fam.key, fam.value))
    return LayerState(*fam, buffer, ops.zeros_like(buffer))


def attend_piece(attention, x, state, valid, slot, in_place=False):
    """Token t: Attention(q_t, [K_{tau-m} .. K_{tau-1}, Kf, K_tau up to t]), for the tokens of one piece.

    Args:
        attention: `FeedbackAttention`.
        x: `[b, t, d]`, normed tokens of one block or a part of one.
        state: `LayerState`.
        valid: bool `[b, (m+1) * B]`, real tokens in the buffer, this piece's included.
        slot: int scalar tensor, where the piece starts in the buffer.
        in_place: bool. The arrays of `state` may be overwritten.

    Returns:
        `(outputs [b, t, d] without residual, LayerState)`.
    """
    size, rings, length = attention.block_size, attention.memory_segments + 1, x.shape[1]
    places = slot % size + ops.arange(length)
    key, value = attention.project_key_value(x)
    key = attention.rotate(key, places)
    query = attention.project_query(x)
    age = (slot // size - ops.arange(rings)) % rings  # how many blocks ago each block of the ring was
    key_places = ops.reshape(ops.arange(size)[None] - age[:, None] * size, (-1,))
    mask = ops.logical_and(token_mask(places, key_places, attention.sliding_window_size)[None], valid[:, None])

    def written(after=None):
        return state._replace(
            key=write(state.key, slot, key, in_place, after), value=write(state.value, slot, value, in_place, after)
        )

    see_fam = ops.ones((ops.shape(mask)[0], length, state.fam.shape[1]), "bool")
    if length == 1:
        own = (ops.arange(rings * size) == slot)[None, None]
        parts = [ops.logical_and(mask, ops.logical_not(own)), see_fam]
        mask = ops.concatenate([*parts, ops.any(ops.logical_and(mask, own), axis=2, keepdims=True)], axis=2)
        attended = _attend_turning_query(attention, query, key, value, state, mask, places, age)
        state = written(after=attended)
    else:
        state = written()
        mask = ops.concatenate([mask, see_fam], axis=2)
        attended = _attend_turning_keys(attention, query, state, mask, places, age)
    return attention.output_dense(attended), state


def _attend_turning_query(attention, query, key, value, state, mask, places, age):
    """One query: turn it, once for each block of the ring, and leave the buffers where they are.

    They are read as they were before the token, its own key and value behind FAM's, which have the same turn: XLA would
    write a buffer once to keep it and once more to read it.
    """
    places = ops.concatenate([places + age * attention.block_size, places])
    queries = attention.rotate(ops.repeat(query, age.shape[0] + 1, axis=1), places)
    near = [ops.concatenate(pair, axis=1) for pair in ((state.fam_key, key), (state.fam_value, value))]
    return attend_once(queries, (state.key, state.value), near, mask, attention.scale, attention.logit_soft_cap)


def _attend_turning_keys(attention, query, state, mask, places, age):
    """Many queries: turn the keys back by their block's age, so that all lie in one row for the fastest kernel."""
    rings, size, (_, slots, *heads) = age.shape[0], attention.block_size, state.key.shape
    turns = attention.rotation(-age * size)
    if turns is None:
        key = state.key
    else:
        turns = Rotation(turns.cos[:, None], turns.sin[:, None])
        key = ops.reshape(turn(ops.reshape(state.key, (-1, rings, size, *heads)), turns), (-1, slots, *heads))
    key = ops.concatenate([key, state.fam_key], axis=1)
    value = ops.concatenate([state.value, state.fam_value], axis=1)
    return attention.attend(attention.rotate(query, places), key, value, mask)


def advance_layer(attention, state, valid, started, slot, normalize=identity, complete=None):
    """F_tau, Kf and Vf after the block of the ring that starts at `slot` is full.

    Args:
        attention: `FeedbackAttention`.
        state: `LayerState`.
        valid: bool `[b, (m+1) * B]`.
        started: bool `[b]`, rows whose FAM has read a block.
        slot: int scalar tensor, the full block's first slot.
        normalize, complete: the layer's norm before attention and what follows it.

    Returns:
        `(fam, fam_key, fam_value)` like those of `LayerState`.
    """
    batch, size = ops.shape(valid)[0], attention.block_size
    shape = (batch, size, attention.num_key_value_heads, attention.head_dim)
    key, value = (ops.slice(x, [0, slot, 0, 0], shape) for x in (state.key, state.value))
    query = attention.project_query(normalize(state.fam))
    fam = FAM(state.fam, state.fam_key, state.fam_value, query, started)
    valid, length = ops.slice(valid, [0, slot], (batch, size)), state.fam.shape[1]
    rotation = attention.rotation(ops.arange(size - length, size))
    vectors, started = update_fam(attention, fam, key, value, valid, rotation, complete)
    fam = project_fam(attention, vectors, started, _before(attention, length), normalize)
    return fam.vectors, fam.key, fam.value


def _before(attention, length):
    """The turns of the last places of the block before, where Kf sits."""
    return attention.rotation(ops.arange(-length, 0))
