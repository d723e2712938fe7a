"""The token half of Algorithm 2: every block's tokens against their memory segments, FAM and their own past."""

from typing import NamedTuple

from keras import ops

from keras_fam.backend.loops import one_after, scan, unrolls
from keras_fam.backend.random import spread_seed
from keras_fam.memory.blocks import token_mask
from keras_fam.memory.core import Core
from keras_fam.types import Tensor


class Keys(NamedTuple):
    """Keys and values of whole blocks.

    Attributes:
        key: `[b, past + n, B, k, c]`, rotated.
        value: `[b, past + n, B, k, c]`.
        valid: bool `[b, past + n, B]`, False for padding, or None.
        past: int, how many of the blocks are memory segments from before the text.
    """

    key: Tensor
    value: Tensor
    valid: Tensor | None = None
    past: int = 0


class Seen(NamedTuple):
    """Sink and FAM as each block's tokens see them.

    Attributes:
        key: `[b, n, S + N, k, c]`, the sink's first if there is one (S = 1).
        value: like `key`.
        fam_length: int, N.
    """

    key: Tensor
    value: Tensor
    fam_length: int


def attend_blocks(
    core: Core, query: Tensor, keys: Keys, seen: Seen | None = None, seeds: dict[str, Tensor] | None = None
) -> Tensor:
    """Token t: Attention(q_t, [K_{tau-m} .. K_{tau-1}, Kf, K_tau up to t]), for every token of every block.

    Blocks with fewer than m segments before them are attended to one after the other. So are the others where the
    backend unrolls its loops (see `unrolls`). Elsewhere one compiled loop runs over them. Where tensorflow does not
    know how many blocks there are, its loop runs over all of them, with empty segments in front of the first ones.

    Args:
        core: `Core`.
        query: `[b, n, B, h, c]`, rotated.
        keys: `Keys`.
        seen: `Seen`, or None for BSWA.
        seeds: dict of drawn seeds for the dropouts, or None.

    Returns:
        `[b, n, B, h, c]`.
    """
    blocks = query.shape[1]
    seeds = {name: spread_seed(seed, ops.shape(query)[1]) for name, seed in (seeds or {}).items()}
    if blocks is None:
        single = 0
    elif unrolls(blocks):
        single = blocks
    else:
        single = min(core.segments - keys.past, blocks)
    attended = []
    if single:
        attended.append(_one_by_one(core, query, keys, seen, seeds, single))
    if blocks is None or single < blocks:
        attended.append(_all_alike(core, query, keys, seen, seeds, single))
    return attended[0] if len(attended) == 1 else ops.concatenate(attended, axis=1)


def _one_by_one(core, query, keys, seen, seeds, count):
    past = keys.past
    query = ops.unstack(query[:, :count], num=count, axis=1)
    key, value = (ops.unstack(x[:, : past + count], num=past + count, axis=1) for x in (keys.key, keys.value))
    if seen is not None:
        seen_key, seen_value = (ops.unstack(x[:, :count], num=count, axis=1) for x in (seen.key, seen.value))
    attended: list[Tensor] = []
    for block in range(count):
        own = past + block
        first = max(0, own - core.segments)
        window = [[*(_recalled(core, y) for y in x[first:own]), x[own]] for x in (key, value)]
        if seen is not None:
            window = [[*window[0], seen_key[block]], [*window[1], seen_value[block]]]
        valid = keys.valid
        valid = None if valid is None else ops.reshape(valid[:, first : own + 1], (ops.shape(valid)[0], -1))
        window_key, window_value = (x[0] if len(x) == 1 else ops.concatenate(x, axis=1) for x in window)
        mask, bias = _visible(core, own - first, valid, seen)
        block_seeds = {name: seed[block] for name, seed in seeds.items()}
        with one_after(attended[-1:]):
            attended.append(core.parts.attend(query[block], window_key, window_value, mask, block_seeds, bias))
    return ops.stack(attended, axis=1)


def _all_alike(core, query, keys, seen, seeds, first):
    """Blocks from `first` on, each behind m whole segments, that may be empty."""
    segments, valid = core.segments, keys.valid
    count, missing = ops.shape(query)[1] - first, segments - keys.past - first
    if valid is None and missing:
        valid = ops.ones(ops.shape(keys.key)[:3], "bool")

    def windows(x, recalled=lambda x: x):
        nothing = ops.zeros((ops.shape(x)[0], missing, *x.shape[2:]), x.dtype)
        x = ops.concatenate([nothing, x], axis=1) if missing else x
        parts = [x[:, segment : segment + count] for segment in range(segments + 1)]
        parts = [*map(recalled, parts[:-1]), parts[-1]]
        return ops.concatenate(parts, axis=2) if segments else parts[0]

    xs = {"query": query[:, first:]}
    xs["key"], xs["value"] = (windows(x, lambda x: _recalled(core, x)) for x in (keys.key, keys.value))
    if seen is not None:
        xs["key"], xs["value"] = (
            ops.concatenate([xs[name], x[:, first:]], axis=2) for name, x in (("key", seen.key), ("value", seen.value))
        )
    if valid is not None:
        xs["valid"] = windows(valid)

    def attend(xs):
        mask, bias = _visible(core, segments, xs.get("valid"), seen)
        return core.parts.attend(xs["query"], xs["key"], xs["value"], mask, xs.get("seeds"), bias)

    axes = dict.fromkeys(xs, 1)
    if seeds:
        xs["seeds"] = {name: seed[first:] for name, seed in seeds.items()}
    nothing = ops.zeros_like(xs["query"][:, 0])
    _, attended = scan(lambda _, block: attend(block), lambda block: block, nothing, xs, count, axes)
    return ops.swapaxes(attended[1:], 0, 1)


def _recalled(core, x):
    """Keys or values of a memory segment, with the gradient that they may have."""
    return ops.stop_gradient(x) if core.options.stop_gradient_memory else x


def _visible(core, segments, valid, seen):
    """What a block's tokens see, bool `[1 or b, B, (segments + 1) * B + S + N]`, and the gate on those keys."""
    size = core.options.block_size
    places = ops.arange(-segments * size, size)
    mask = token_mask(ops.arange(size), places, core.parts.sliding_window)[None]
    if valid is not None:
        mask = ops.logical_and(mask, valid[:, None])
    if seen is None:
        return mask, None
    always = ops.ones((ops.shape(mask)[0], size, seen.key.shape[2]), "bool")
    slots = (segments + 1) * size + seen.key.shape[2]
    return ops.concatenate([mask, always], axis=2), core.gate_bias(slots, seen.fam_length)
