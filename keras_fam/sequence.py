"""The layer-parallel form: a whole sequence through one layer's attention.

F_tau depends on the inputs of its block and not on what the tokens become, so all tokens are projected and attend at
once, and only the N vectors of FAM go through a sequential loop.
"""

from typing import NamedTuple

from keras import ops, tree

from keras_fam.block_attention import attend_blocks
from keras_fam.feedback import FAM, add_residual, identity, project_fam, update_fam
from keras_fam.loops import scan
from keras_fam.ops import merge_blocks, split_blocks, spread_seed
from keras_fam.rotary import Rotation, turn
from keras_fam.types import Tensor


class Past(NamedTuple):
    """The memory segments that a text goes on from.

    `key` `[b, m, B, k, c]`, not rotated; `value` `[b, m, B, k, c]`; `valid` bool `[b, m, B]`.
    """

    key: Tensor
    value: Tensor
    valid: Tensor


def attend_sequence(
    attention,
    inputs,
    fam,
    inputs_mask=None,
    normalize=identity,
    complete=add_residual,
    started=None,
    past=None,
    seed=None,
    update_seeds=None,
    keep_last=False,
):
    """A whole sequence of tokens, and FAM from block to block.

    Args:
        attention: `FeedbackAttention`.
        inputs: `[b, length, d]`, I.
        fam: `[1 or b, N, d]`, F before the first block, or None for BSWA.
        inputs_mask: `[b, length]`, True for real tokens, or None.
        normalize: callable, the layer's norm before attention.
        complete: callable `(attention, residual, seeds)`, the rest of the layer.
        started: bool `[b]`, rows whose `fam` carries context; None for none.
        past: `Past`, or None.
        seed: drawn seed for the dropout of the tokens' attention weights, or None.
        update_seeds: drawn seeds of `update_fam`, a pair, or None.
        keep_last: bool. Update FAM with the last complete block too, and return what a text goes on from.

    Returns:
        `(outputs, last)`: `[b, length, d]` without residual; with `keep_last` a list of the FAM `[b, N, d]` after the
        last complete block, if there is one, and with `past` of the key and the value of the `Past` to go on from,
        else None.
    """
    length, size = ops.shape(inputs)[1], attention.block_size
    segments = 0 if past is None else attention.memory_segments
    x = normalize(inputs)
    query = split_blocks(attention.project_query(x), size, length)
    key, value = (split_blocks(y, size, length) for y in attention.project_key_value(x))
    valid = None if inputs_mask is None else split_blocks(ops.cast(inputs_mask, "bool"), size, length)
    last = []
    if past is not None:
        valid = ops.ones(ops.shape(query)[:3], "bool") if valid is None else valid
        valid = ops.concatenate([past.valid, valid], axis=1)
        key, value = (ops.concatenate([x, y], axis=1) for x, y in ((past.key, key), (past.value, value)))
        last = [x[:, ops.shape(x)[1] - segments :] for x in (key, value)]
    rotations = attention.block_rotations(ops.shape(key)[1])
    if rotations is not None:
        query = turn(query, Rotation(*(x[segments + 1 :] for x in rotations)))
        key = turn(key, Rotation(*(x[1:] for x in rotations)))
        rotations = Rotation(*(x[segments:] for x in rotations))

    seen = None
    if fam is not None:
        new = (key, value, valid) if past is None else (x[:, segments:] for x in (key, value, valid))
        seen, vectors = _feedback_loop(
            attention, *new, rotations, length, fam, started, normalize, complete, update_seeds, keep_last
        )
        last = [vectors, *last]
    attended = attend_blocks(attention, query, key, value, valid, seen, seed, segments)
    return attention.output_dense(merge_blocks(attended, length)), last if keep_last else None


def _feedback_loop(
    attention, key, value, valid, rotations, length, fam, started, normalize, complete, update_seeds, keep_last
):
    """N vectors through all blocks: Kf and Vf `[b, n, N, k, c]` as each block's tokens see them, and the last F.

    `rotations` are of the block before the text and of all blocks, `[n + 1, B, c / 2]`.
    """
    batch, blocks = ops.shape(key)[0], ops.shape(key)[1]
    updates = length // attention.block_size if keep_last else blocks - 1
    if started is None:
        started = ops.zeros((batch,), "bool")
    if rotations is not None:  # FAM sits on the last N places of a block.
        rotations = Rotation(*(x[:, -fam.shape[1] :] for x in rotations))
    # The prompt is projected once for all rows.
    start = project_fam(attention, fam, started, rotations and Rotation(*(x[0] for x in rotations)), normalize)
    start = FAM(*(ops.broadcast_to(x, (batch, *x.shape[1:])) for x in start[:-1]), started)
    truncate = attention.truncate_bptt

    def step(fam, block):
        rotation, seeds = block.get("rotation"), block.get("seeds", (None, None))
        vectors, started = update_fam(
            attention, fam, block["key"], block["value"], block.get("valid"), rotation, complete, *seeds
        )
        if truncate is not None:
            vectors = ops.where((block["index"] + 1) % truncate == 0, ops.stop_gradient(vectors), vectors)
        return project_fam(attention, vectors, started, rotation, normalize)

    by_block = {"key": key, "value": value} if valid is None else {"key": key, "value": value, "valid": valid}
    axes = dict.fromkeys(by_block, 1)
    if rotations is not None:
        by_block["rotation"] = Rotation(*(x[1:] for x in rotations))
    if truncate is not None:
        by_block["index"] = ops.arange(blocks)
    if update_seeds is not None:
        by_block["seeds"] = tree.map_structure(lambda seed: spread_seed(seed, blocks), update_seeds)
    last, seen = scan(step, lambda fam: (fam.key, fam.value), start, by_block, updates, axes)
    return tuple(ops.swapaxes(x[:blocks], 0, 1) for x in seen), last.vectors
