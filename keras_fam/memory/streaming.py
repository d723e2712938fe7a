"""The block-after-block form: pieces of at most a block through one layer, against buffers of fixed size.

A layer keeps a ring of blocks. Each key in it is rotated to its place inside its own block, once. A query and a key of
an earlier block lie some whole blocks apart. That part of the rotation is added when they meet: to the query if there
is one query, to the keys if there are many.
"""

from typing import NamedTuple

import keras
from keras import ops

from keras_fam.backend.buffers import own_rows, write
from keras_fam.backend.kernels import attend_once
from keras_fam.memory.blocks import token_mask
from keras_fam.memory.core import Core
from keras_fam.memory.feedback import FAM, Block, project_fam, update_fam
from keras_fam.memory.options import MemoryOptions
from keras_fam.memory.rotary import Rotation, turn
from keras_fam.memory.sequence import project_sink
from keras_fam.memory.state import LayerState, Sink
from keras_fam.types import Tensor


class Place(NamedTuple):
    """Where a stream is.

    Attributes:
        position: int32 scalar, the place of the piece's first token.
        valid: bool `[b, (m+1) * B]`, real tokens in a ring of m+1 blocks, the piece's included.
    """

    position: Tensor
    valid: Tensor


def initial_layer_state(core: Core, fam: Tensor, batch_size: int | Tensor, sink: Tensor | None = None) -> LayerState:
    """An empty stream's state at one layer.

    Args:
        core: `Core`.
        fam: `[1 or b, N, d]`, the prompt at this layer; N may be 0.
        batch_size: int or scalar tensor.
        sink: `[1, 1, d]`, the start token at this layer, or None.

    Returns:
        `LayerState`.
    """
    parts = core.parts
    heads = (parts.num_key_value_heads, parts.head_dim)
    buffers = (ops.zeros((batch_size, slots(core), *heads), parts.compute_dtype) for _ in range(2))
    if sink is not None:
        sink = project_sink(core, sink)
        before = -fam.shape[1] - 1
        sink = Sink(parts.rotate(sink.key, ops.arange(before, before + 1)), sink.value)
    fam = ops.cast(fam, parts.fam_dtype)
    if fam.shape[1]:
        seen = project_fam(core, fam, None, _before(core, fam.shape[1]), sink)
    else:  # Quantized projections take no empty tensor.
        seen = sink or Sink(*(ops.zeros((1, 0, *heads), parts.compute_dtype) for _ in range(2)))
    return LayerState(*(own_rows(x, batch_size) for x in (fam, seen.key, seen.value)), *buffers)


def slots(core: Core) -> int:
    """Places of a layer's ring."""
    return (core.segments + 1) * core.options.block_size


def read_piece(
    core: Core, x: Tensor, state: LayerState, place: Place, in_place: bool = False
) -> tuple[Tensor, LayerState]:
    """Token t: Attention(q_t, [K_{tau-m} .. K_{tau-1}, Kf, K_tau up to t]), for the tokens of one piece.

    Args:
        core: `Core`.
        x: `[b, t, d]`, normed tokens of one block or a part of one.
        state: `LayerState`.
        place: `Place`.
        in_place: bool. The arrays of `state` may be overwritten.

    Returns:
        `(outputs [b, t, d] without residual, LayerState)`.
    """
    parts, size, rings, length = core.parts, core.options.block_size, core.segments + 1, x.shape[1]
    slot = place.position % (rings * size)
    places = slot % size + ops.arange(length)
    age = (slot // size - ops.arange(rings)) % rings  # how many blocks ago each block of the ring was
    key, value = parts.project_key_value(x)
    key, query = parts.rotate(key, places), parts.project_query(x)
    key_places = ops.reshape(ops.arange(size)[None] - age[:, None] * size, (-1,))
    mask = token_mask(places, key_places, parts.sliding_window)[None]
    mask = ops.logical_and(mask, _ring_of(core, place, age)[:, None])

    def written(after=None):
        return state._replace(
            key=write(state.key, slot, key, in_place, after), value=write(state.value, slot, value, in_place, after)
        )

    always = ops.ones((ops.shape(mask)[0], length, state.fam_key.shape[1]), "bool")
    if length == 1:
        own = (ops.arange(rings * size) == slot)[None, None]
        others, itself = ops.logical_and(mask, ops.logical_not(own)), ops.logical_and(mask, own)
        mask = ops.concatenate([others, always, ops.any(itself, axis=2, keepdims=True)], axis=2)
        attended = _attend_turning_query(core, (query, key, value), state, mask, (places, age))
        state = written(after=attended)
    else:
        state = written()
        mask = ops.concatenate([mask, always], axis=2)
        attended = _attend_turning_keys(core, query, state, mask, (places, age))
    return parts.project_output(attended), state


def _ring_of(core, place, age):
    """Real tokens in this layer's ring, bool `[b, (r+1) * B]`, out of those in the ring of m+1 blocks."""
    size, rings = core.options.block_size, core.options.memory_segments + 1
    if core.segments + 1 == rings:
        return place.valid
    blocks = ops.reshape(place.valid, (-1, rings, size))
    chosen = ops.take(blocks, (place.position // size - age) % rings, axis=1)
    return ops.reshape(chosen, (-1, slots(core)))


def _attend_turning_query(core, projected, state, mask, at):
    """One query: turn it, once for each block of the ring, and leave the buffers where they are.

    The buffers are read as they were before the token. Its own key and value go behind FAM's, which have the same turn.
    If they were written first, XLA would write a buffer twice: once to read it, once to keep it.
    """
    (query, key, value), (places, age) = projected, at
    places = ops.concatenate([places + age * core.options.block_size, places])
    queries = core.parts.rotate(ops.repeat(query, age.shape[0] + 1, axis=1), places)
    near = ops.concatenate([state.fam_key, key], axis=1), ops.concatenate([state.fam_value, value], axis=1)
    bias = core.gate_bias(mask.shape[2], state.fam.shape[1], behind=1)
    return attend_once(queries, (state.key, state.value), near, mask, core.parts.scoring, bias)


def _attend_turning_keys(core, query, state, mask, at):
    """Many queries: turn the keys back by their block's age, so that all lie in one row for the fastest kernel."""
    (places, age), size = at, core.options.block_size
    rings, (_, ring_slots, *heads) = age.shape[0], state.key.shape
    turns = core.parts.rotation(-age * size)
    if turns is None:
        key = state.key
    else:
        turns = Rotation(turns.cos[:, None], turns.sin[:, None])
        key = ops.reshape(turn(ops.reshape(state.key, (-1, rings, size, *heads)), turns), (-1, ring_slots, *heads))
    key = ops.concatenate([key, state.fam_key], axis=1)
    value = ops.concatenate([state.value, state.fam_value], axis=1)
    bias = core.gate_bias(mask.shape[2], state.fam.shape[1])
    return core.parts.attend(core.parts.rotate(query, places), key, value, mask, key_bias=bias)


def advance_layer(core: Core, state: LayerState, place: Place, started: Tensor) -> LayerState:
    """F_tau, Kf and Vf after a block is full.

    Args:
        core: `Core`.
        state: `LayerState`.
        place: `Place` of any token of the full block.
        started: bool `[b]`, rows whose FAM had read a block before.

    Returns:
        `LayerState`.
    """
    parts, size, length = core.parts, core.options.block_size, state.fam.shape[1]
    slot = place.position // size * size
    batch = ops.shape(place.valid)[0]
    shape = (batch, size, parts.num_key_value_heads, parts.head_dim)
    key, value = (ops.slice(x, [0, slot % slots(core), 0, 0], shape) for x in (state.key, state.value))
    valid = block_valid(core.options, place)
    query = core.fam_parts.project_query(core.fam_parts.normalize(state.fam))
    fam = FAM(state.fam, state.fam_key, state.fam_value, query, started)
    block = Block(key, value, valid, parts.rotation(ops.arange(size - length, size)))
    vectors, started = update_fam(core, fam, block)
    sinks = state.fam_key.shape[1] - length
    sink = Sink(state.fam_key[:, :sinks], state.fam_value[:, :sinks]) if sinks else None
    fam = project_fam(core, vectors, started, _before(core, length), sink)
    return state._replace(fam=fam.vectors, fam_key=fam.key, fam_value=fam.value)


def block_valid(options: MemoryOptions, place: Place) -> Tensor:
    """Real tokens, bool `[b, B]`, of the block that `place` lies in."""
    size = options.block_size
    slot = place.position // size * size % options.slots
    return ops.slice(place.valid, [0, slot], (ops.shape(place.valid)[0], size))


def _before(core, length):
    """The turns of the last places of the block before, where Kf sits."""
    return core.parts.rotation(ops.arange(-length, 0))


def with_short_rings(state, expected, options):
    """A state whose layers keep all m segments, for a model whose layers keep what their own window can see.

    States saved by versions before 0.2 are like that, and hold F in the compute dtype.

    Args:
        state: `StreamState`.
        expected: `StreamState` of the shapes and dtypes wanted.
        options: `MemoryOptions`.

    Returns:
        `StreamState`; the same where nothing is longer than it needs to be.
    """
    if len(state.layers) != len(expected.layers):
        return state
    layers = []
    for layer, wanted in zip(state.layers, expected.layers):
        if wanted.fam.dtype != keras.backend.standardize_dtype(layer.fam.dtype):
            layer = layer._replace(fam=ops.cast(layer.fam, wanted.fam.dtype))
        if wanted.key.shape[1] < layer.key.shape[1] == options.slots:
            rings, size = wanted.key.shape[1] // options.block_size, options.block_size
            block = state.position[0] // size
            age = (block - ops.arange(rings)) % rings
            chosen = (block - age) % (options.memory_segments + 1)
            layer = layer._replace(
                **{name: _blocks_of(getattr(layer, name), chosen, size) for name in ("key", "value")}
            )
        layers.append(layer)
    return state._replace(layers=tuple(layers))


def _blocks_of(ring, chosen, size):
    blocks = ops.reshape(ring, (ring.shape[0], -1, size, *ring.shape[2:]))
    return ops.reshape(ops.take(blocks, chosen, axis=1), (ring.shape[0], -1, *ring.shape[2:]))
