"""The token half of Algorithm 2: every block's tokens against their memory segments, FAM and their own past."""

import keras
from keras import ops

from keras_fam.loops import one_after, scan
from keras_fam.ops import spread_seed, token_mask


def attend_blocks(attention, query, key, value, valid, fam=None, seed=None, past=0):
    """Token t: Attention(q_t, [K_{tau-m} .. K_{tau-1}, Kf, K_tau up to t]), for every token of every block.

    Blocks with fewer than m segments before them are attended to one by one; so are all others, but on jax, where one
    compiled loop runs over the rest, and where tensorflow does not know how many there are: there the loop runs over
    all blocks, with empty segments in front where some are missing.

    Args:
        attention: `FeedbackAttention`.
        query: `[b, n, B, h, c]`, rotated.
        key, value: `[b, past + n, B, k, c]`, the key rotated.
        valid: bool `[b, past + n, B]`, False for padding, or None.
        fam: `(Kf, Vf)`, each `[b, n, N, k, c]` as each block's tokens see them, or None for BSWA.
        seed: drawn seed for the dropout of the attention weights, or None.
        past: int, 0 or m: memory segments from before the text.

    Returns:
        `[b, n, B, h, c]`.
    """
    blocks = query.shape[1]
    seeds = spread_seed(seed, ops.shape(query)[1])
    if blocks is None:
        single = 0
    elif keras.config.backend() == "jax":
        single = min(attention.memory_segments - past, blocks)
    else:
        single = blocks
    attended = []
    if single:
        attended.append(_one_by_one(attention, query, key, value, valid, fam, seeds, past, single))
    if blocks is None or single < blocks:
        attended.append(_all_alike(attention, query, key, value, valid, fam, seeds, past, single))
    return attended[0] if len(attended) == 1 else ops.concatenate(attended, axis=1)


def _one_by_one(attention, query, key, value, valid, fam, seeds, past, count):
    query = ops.unstack(query[:, :count], num=count, axis=1)
    key, value = (ops.unstack(x[:, : past + count], num=past + count, axis=1) for x in (key, value))
    fam = None if fam is None else [ops.unstack(x[:, :count], num=count, axis=1) for x in fam]
    attended = []
    for block in range(count):
        own = past + block
        first = max(0, own - attention.memory_segments)
        window_key, window_value = ([*map(attention.memory, x[first:own]), x[own]] for x in (key, value))
        if fam is not None:
            window_key, window_value = [*window_key, fam[0][block]], [*window_value, fam[1][block]]
        window_valid = None if valid is None else ops.reshape(valid[:, first : own + 1], (ops.shape(valid)[0], -1))
        mask = _mask(attention, own - first, window_valid, None if fam is None else fam[0][block])
        seed = None if seeds is None else seeds[block]
        keys, values = (x[0] if len(x) == 1 else ops.concatenate(x, axis=1) for x in (window_key, window_value))
        with one_after(attended[-1:]):
            attended.append(attention.attend(query[block], keys, values, mask, seed))
    return ops.stack(attended, axis=1)


def _all_alike(attention, query, key, value, valid, fam, seeds, past, first):
    """Blocks from `first` on, each behind m whole segments, that may be empty."""
    segments = attention.memory_segments
    count, missing = ops.shape(query)[1] - first, segments - past - first
    if valid is None and missing:
        valid = ops.ones(ops.shape(key)[:3], "bool")

    def windows(x, recall=None):
        nothing = ops.zeros((ops.shape(x)[0], missing, *x.shape[2:]), x.dtype)
        x = ops.concatenate([nothing, x], axis=1) if missing else x
        parts = [x[:, segment : segment + count] for segment in range(segments + 1)]
        if recall is not None:
            parts = [*map(recall, parts[:-1]), parts[-1]]
        return ops.concatenate(parts, axis=2) if segments else parts[0]

    xs = {
        "query": query[:, first:],
        "key": windows(key, attention.memory),
        "value": windows(value, attention.memory),
    }
    if fam is not None:
        xs["key"], xs["value"] = (ops.concatenate([xs[n], x[:, first:]], axis=2) for n, x in zip(("key", "value"), fam))
    if valid is not None:
        xs["valid"] = windows(valid)

    def attend(xs):
        mask = _mask(attention, segments, xs.get("valid"), None if fam is None else fam[0][:, 0])
        return attention.attend(xs["query"], xs["key"], xs["value"], mask, xs.get("seed"))

    axes = dict.fromkeys(xs, 1)
    if seeds is not None:
        xs["seed"] = seeds[first:]
    nothing = ops.zeros_like(xs["query"][:, 0])
    _, attended = scan(lambda _, block: attend(block), lambda block: block, nothing, xs, count, axes)
    return ops.swapaxes(attended[1:], 0, 1)


def _mask(attention, segments, valid, fam):
    """bool `[1 or b, B, (segments + 1) * B + N]`: what a block's tokens see."""
    size = attention.block_size
    places = ops.arange(-segments * size, size)
    mask = token_mask(ops.arange(size), places, attention.sliding_window_size)[None]
    if valid is not None:
        mask = ops.logical_and(mask, valid[:, None])
    if fam is None:
        return mask
    return ops.concatenate([mask, ops.ones((ops.shape(mask)[0], size, fam.shape[1]), "bool")], axis=2)
