"""The layer-parallel form: a whole text through one layer's attention.

F_tau depends on the inputs of its block and not on what the tokens become. So all tokens are projected and attend at
once, and only the N vectors of FAM go through a loop over the blocks.
"""

from typing import NamedTuple

import keras
from keras import ops

from keras_fam.backend.loops import scan
from keras_fam.backend.random import spread_seed
from keras_fam.memory.blocks import merge_blocks, split_blocks
from keras_fam.memory.core import Core
from keras_fam.memory.feedback import FAM, Block, project_fam, update_fam
from keras_fam.memory.parts import DecoderParts
from keras_fam.memory.rotary import Rotation, turn
from keras_fam.memory.state import Beginning, Passed, Sink
from keras_fam.memory.tokens import Keys, Seen, attend_blocks
from keras_fam.types import Tensor

TOKENS_AT_ONCE = 2048  # behind the attention, on jax and torch outside training


def attend_sequence(
    core: Core,
    inputs: Tensor,
    beginning: Beginning = Beginning(),  # noqa: B008  (a tuple: nothing can change it)
    mask: Tensor | None = None,
    seeds: dict[str, Tensor] | None = None,
    update_seeds: dict[str, Tensor] | None = None,
    passes_on: bool = False,
) -> tuple[Tensor, Passed | None]:
    """A whole sequence of tokens through the attention, and FAM from block to block.

    Args:
        core: `Core`.
        inputs: `[b, length, d]`, I.
        beginning: `Beginning`.
        mask: `[b, length]`, True for real tokens, or None.
        seeds: dict of drawn seeds for the dropouts of tokens, or None.
        update_seeds: dict of drawn seeds for the dropouts of FAM's updates, or None.
        passes_on: bool. Update FAM with the last complete block too, and return what a text goes on from.

    Returns:
        `(outputs, passed)`: `[b, length, d]` without residual, and with `passes_on` a `Passed`, else None.
    """
    parts, length, size = core.parts, ops.shape(inputs)[1], core.options.block_size
    segments = beginning.segments
    past = 0 if segments is None else core.segments
    x = parts.normalize(inputs)
    query = split_blocks(parts.project_query(x), size, length)
    key, value = (split_blocks(y, size, length) for y in parts.project_key_value(x))
    valid = None if mask is None else split_blocks(ops.cast(mask, "bool"), size, length)
    last_segments = ()
    if segments is not None:
        valid = ops.ones(ops.shape(query)[:3], "bool") if valid is None else valid
        valid = ops.concatenate([segments.valid, valid], axis=1)
        key, value = (ops.concatenate(pair, axis=1) for pair in ((segments.key, key), (segments.value, value)))
        last_segments = [x[:, ops.shape(x)[1] - past :] for x in (key, value)]
    rotations = parts.block_rotations(size, ops.shape(key)[1], ops.arange(size))
    if rotations is not None:
        query = turn(query, rotations.at(slice(past + 1, None)))
        key = turn(key, rotations.at(slice(1, None)))
        rotations = rotations.at(slice(past, None))

    keys = Keys(key, value, valid, past)
    seen, fam = None, None
    if beginning.fam is not None:
        key, value, valid = (None if x is None else x[:, past:] for x in keys[:3])
        text = Text(key, value, valid, rotations, length, past)
        seen, fam = _feedback_loop(core, text, beginning, update_seeds, passes_on)
    elif beginning.sink is not None:
        seen = _sinks(core, beginning.sink, ops.shape(query), past)
    attended = merge_blocks(attend_blocks(core, query, keys, seen, seeds), length)
    return parts.project_output(attended), Passed(fam, *last_segments) if passes_on else None


class Text(NamedTuple):
    """All blocks of a text as FAM reads them: `Keys` without memory segments, and the turns of their places.

    Attributes:
        key: `[b, n, B, k, c]`, rotated.
        value: `[b, n, B, k, c]`.
        valid: bool `[b, n, B]`, or None.
        rotations: `Rotation` of `[n + 1, B, c / 2]`, of the block before the text and of all blocks; or None.
        length: int or scalar tensor, tokens.
        past: int, blocks that memory segments hold before the text: its own begin on place `past * B`.
    """

    key: Tensor
    value: Tensor
    valid: Tensor | None
    rotations: Rotation | None
    length: int | Tensor
    past: int


def _feedback_loop(core, text, beginning, seeds, passes_on):
    """N vectors through all blocks: `Seen` as each block's tokens see it, and the last F."""
    parts, (batch, blocks), length = core.parts, ops.shape(text.key)[:2], beginning.fam.shape[1]
    size, truncate = core.options.block_size, core.options.truncate_bptt
    updates = text.length // size if passes_on else blocks - 1
    started = ops.zeros((batch,), "bool") if beginning.started is None else beginning.started
    # FAM sits on the last N places of a block, the sink on the place before them.
    rotations = None if text.rotations is None else text.rotations.at((slice(None), slice(size - length, None)))
    sink, sink_rotations = None, None
    if beginning.sink is not None:
        sink = project_sink(core, beginning.sink)
        sink_rotations = _sink_rotations(core, -length - 1, text.past, blocks + 1)

    def project(vectors, started, rotation, sink_rotation):
        own_sink = None if sink is None else sink._replace(key=turn(sink.key, sink_rotation))
        return project_fam(core, vectors, started, rotation, own_sink)

    def row(turns, index):
        return None if turns is None else turns.at(index)

    # The prompt is projected once for all rows.
    start = project(ops.cast(beginning.fam, parts.fam_dtype), started, row(rotations, 0), row(sink_rotations, 1))
    vectors, key, value, query = (ops.broadcast_to(x, (batch, *x.shape[1:])) for x in start[:-1])
    start = FAM(vectors, key, value, query, started)

    def step(fam, block):
        rotation = block.get("rotation")
        this = Block(block["key"], block["value"], block.get("valid"), rotation)
        vectors, started = update_fam(core, fam, this, block.get("seeds"))
        if truncate is not None:
            vectors = ops.where((block["index"] + 1) % truncate == 0, ops.stop_gradient(vectors), vectors)
        return project(vectors, started, rotation, block.get("sink_rotation"))

    by_block = {"key": text.key, "value": text.value}
    if text.valid is not None:
        by_block["valid"] = text.valid
    axes = dict.fromkeys(by_block, 1)
    if rotations is not None:
        by_block["rotation"] = rotations.at(slice(1, None))
    if sink_rotations is not None:  # Of the block behind, whose tokens see what a step makes.
        by_block["sink_rotation"] = sink_rotations.at(slice(2, None))
    if truncate is not None:
        by_block["index"] = ops.arange(blocks)
    if seeds:
        by_block["seeds"] = {name: spread_seed(seed, blocks) for name, seed in seeds.items()}
    last, (key, value) = scan(step, lambda fam: (fam.key, fam.value), start, by_block, updates, axes)
    key, value = (ops.swapaxes(x[:blocks], 0, 1) for x in (key, value))
    return Seen(key, value, length), last.vectors


def project_sink(core: Core, sink: Tensor) -> Sink:
    """The start token's key, not rotated, and value: `[1, 1, d]` to a `Sink`."""
    return Sink(*core.parts.project_key_value(core.parts.normalize(sink)))


def _sink_rotations(core, place, past, blocks):
    """The sink's turns at a place of all blocks of a text and of the one before: `[blocks + 1, 1, c / 2]`, or None."""
    turns = core.parts.block_rotations(core.options.block_size, past + blocks, ops.arange(place, place + 1))
    return None if turns is None else turns.at(slice(past, None))


def _sinks(core, sink, shape, past):
    """`Seen` of a sink without FAM; `shape` is that of the queries, `[b, n, B, h, c]`."""
    (batch, blocks), sink = shape[:2], project_sink(core, sink)
    turns = _sink_rotations(core, -1, past, blocks)
    key = turn(sink.key, None if turns is None else turns.at(slice(1, None)))
    heads = (core.parts.num_key_value_heads, core.parts.head_dim)
    key, value = (ops.broadcast_to(x[None], (batch, blocks, 1, *heads)) for x in (key, sink.value))
    return Seen(key, value, 0)


def lift_prompt(core: Core, prompt: Tensor) -> Tensor:
    """The prompt for the layer above: through this layer, seeing itself alone, full and not causal, without dropout.

    Args:
        core: `Core`.
        prompt: `[1 or b, N, d]`.

    Returns:
        `[1 or b, N, d]`.
    """
    return _lifted(core.fam_parts, prompt)


def lift_sink(core: Core, sink: Tensor) -> Tensor:
    """The start token of a sink for the layer above: through this layer as a token, alone.

    Args:
        core: `Core`.
        sink: `[1, 1, d]`.

    Returns:
        `[1, 1, d]`.
    """
    return _lifted(core.parts, sink)


def _lifted(parts, vectors):
    return parts.complete(attend_prompt(parts, parts.normalize(vectors)), vectors)


def attend_prompt(parts: DecoderParts, normed: Tensor) -> Tensor:
    """Attention among the N prompt vectors alone, on places -N .. -1: `[1 or b, N, d]`, without residual."""
    places = ops.arange(-normed.shape[1], 0)
    key, value = parts.project_key_value(normed)
    if normed.shape[1] == 1:  # One vector alone sees itself with weight 1; a softmax of one score makes Keras warn.
        return parts.project_output(ops.repeat(value, parts.num_query_heads // parts.num_key_value_heads, axis=2))
    query, key = parts.rotate(parts.project_query(normed), places), parts.rotate(key, places)
    return parts.project_output(parts.attend(query, key, value, ops.ones((1, 1, normed.shape[1]), "bool")))


def complete_tokens(core: Core, attention: Tensor, inputs: Tensor, seeds: dict, training: bool | None) -> Tensor:
    """`DecoderParts.complete` for the tokens of a whole text.

    Outside training, jax and torch take a long text in parts, so that activations stay small. tensorflow gains nothing
    by that, and jax loses in training.

    Args:
        core: `Core`.
        attention: `[b, length, d]`.
        inputs: `[b, length, d]`, I.
        seeds: dict of drawn seeds for the dropouts, or None.
        training: bool or None.

    Returns:
        `[b, length, d]`.
    """
    length = inputs.shape[1]
    if training or keras.config.backend() == "tensorflow" or length <= TOKENS_AT_ONCE:
        return core.parts.complete(attention, inputs, seeds)
    count = -(-length // TOKENS_AT_ONCE)
    parts = [ops.moveaxis(split_blocks(x, -(-length // count), length), 1, 0) for x in (attention, inputs)]
    completed = ops.map(lambda part: core.parts.complete(*part), parts)
    return merge_blocks(ops.moveaxis(completed, 0, 1), length)
