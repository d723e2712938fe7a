"""The layer-parallel form: a whole sequence through one layer's attention.

F_tau depends on the inputs of its block and not on what the tokens become, so all tokens are projected and attend at
once, with the blocks folded into the batch, and only the N vectors of FAM go through a sequential loop.
"""

from keras import ops

from keras_fam.feedback import FAM, add_residual, identity, project_fam, update_fam
from keras_fam.loops import scan
from keras_fam.ops import attend, block_windows, merge_blocks, split_blocks, token_mask


def attend_sequence(
    attention,
    inputs,
    fam,
    inputs_mask=None,
    normalize=identity,
    complete=add_residual,
    started=None,
    seed=None,
    draw_update_seeds=None,
    keep_last=False,
):
    """Token t: Attention(q_t, [K_{tau-m} .. K_{tau-1}, Kf, K_tau up to t]), for every token of every block.

    Args:
        attention: `FeedbackAttention`.
        inputs: `[b, length, d]`, I.
        fam: `[1 or b, N, d]`, F before the first block, or None for BSWA.
        inputs_mask: `[b, length]`, True for real tokens, or None.
        normalize: callable, the layer's norm before attention.
        complete: callable `(attention, residual, seeds)`, the rest of the layer.
        started: bool `[b]`, rows whose `fam` carries context; None for none.
        seed: drawn seed for the dropout of the tokens' attention weights, or None.
        draw_update_seeds: callable from a number of updates to that many pairs of seeds for `update_fam`, or None.
        keep_last: bool. Update FAM with the last complete block too, and return it.

    Returns:
        `(outputs, last)`: `[b, length, d]` without residual, and with `keep_last` the FAM `[b, N, d]` after the last
        complete block, else None.
    """
    batch, length = ops.shape(inputs)[0], ops.shape(inputs)[1]
    size, memory = attention.block_size, attention.memory_segments * attention.block_size
    x = normalize(inputs)
    query = split_blocks(attention.project_query(x), size, length)
    key, value = (split_blocks(y, size, length) for y in attention.project_key_value(x))
    valid = ops.ones((batch, length), "bool") if inputs_mask is None else ops.cast(inputs_mask, "bool")
    valid = split_blocks(valid, size, length)

    window_key = attention.rotate(_fold(_window(attention, key)), ops.arange(-memory, size))
    window_value = _fold(_window(attention, value))
    visible = token_mask(ops.arange(size), ops.arange(-memory, size), attention.sliding_window_size)
    mask = ops.logical_and(visible[None], _fold(block_windows(valid, attention.memory_segments))[:, None])
    last = None
    if fam is not None:
        own_key = ops.reshape(window_key[:, memory:], ops.shape(key))
        fam_key, fam_value, last = _feedback_loop(
            attention, own_key, value, valid, length, fam, started, normalize, complete, draw_update_seeds, keep_last
        )
        window_key = ops.concatenate([window_key, _fold(fam_key)], axis=1)
        window_value = ops.concatenate([window_value, _fold(fam_value)], axis=1)
        mask = ops.concatenate([mask, ops.ones((ops.shape(mask)[0], size, fam.shape[1]), "bool")], axis=2)

    query_rotated = attention.rotate(_fold(query), ops.arange(size))
    scores = attention.scores(query_rotated, window_key)
    attended = attend(scores, window_value, mask, attention.dropout, seed)
    return attention.output_dense(merge_blocks(ops.reshape(attended, ops.shape(query)), length)), last


def _fold(x):
    """`[b, n, ...]` to `[b * n, ...]`."""
    return ops.reshape(x, (-1, *x.shape[2:]))


def _window(attention, x):
    window = block_windows(x, attention.memory_segments)
    if attention.stop_gradient_memory and attention.memory_segments:
        memory = attention.memory_segments * attention.block_size
        window = ops.concatenate([ops.stop_gradient(window[:, :, :memory]), window[:, :, memory:]], axis=2)
    return window


def _feedback_loop(
    attention, key, value, valid, length, fam, started, normalize, complete, draw_update_seeds, keep_last
):
    """N vectors through all blocks: Kf and Vf `[b, n, N, k, c]` as each block's tokens see them, and the last F."""
    batch, blocks = ops.shape(valid)[0], ops.shape(valid)[1]
    updates = length // attention.block_size if keep_last else blocks - 1
    if started is None:
        started = ops.zeros((batch,), "bool")
    # The prompt is projected once for all rows.
    start = project_fam(attention, fam, started, normalize)
    start = FAM(*(ops.broadcast_to(x, (batch, *x.shape[1:])) for x in start[:-1]), started)
    truncate = attention.truncate_bptt

    def step(fam, block):
        vectors, started = update_fam(
            attention, fam, block["key"], block["value"], block["valid"], complete, *block.get("seeds", (None, None))
        )
        if truncate is not None:
            vectors = ops.where((block["index"] + 1) % truncate == 0, ops.stop_gradient(vectors), vectors)
        return project_fam(attention, vectors, started, normalize)

    # XLA compiles the loop's body even where it never runs: give it a row to look at.
    rows = updates if isinstance(updates, int) else ops.maximum(updates, 1)
    blocks_first = {
        name: ops.swapaxes(x, 0, 1)[:rows] for name, x in (("key", key), ("value", value), ("valid", valid))
    }
    if truncate is not None:
        blocks_first["index"] = ops.arange(rows)
    if draw_update_seeds is not None:
        blocks_first["seeds"] = draw_update_seeds(rows)
    last, seen = scan(step, lambda fam: (fam.key, fam.value), start, blocks_first, updates)
    fam_key, fam_value = (ops.swapaxes(x[:blocks], 0, 1) for x in seen)
    return fam_key, fam_value, last.vectors if keep_last else None
