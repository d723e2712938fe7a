"""TransformerFAM's equations on plain tensors: masks from positions, grouped-query attention, dropout from drawn seeds.

Shape letters used throughout the package:

| letter | meaning |
|---|---|
| b | batch |
| n | blocks of a sequence |
| B | `block_size`, tokens per block |
| m | `memory_segments`, past blocks that stay visible |
| N | `fam_length`, FAM vectors |
| d | hidden dim |
| h, k | query heads, key/value heads (g = h / k queries share a key) |
| c | head dim |
| t, s | query places, key places |
"""

import keras
from keras import ops

from keras_fam.types import Tensor

# Large enough to vanish after softmax in float32, small enough not to overflow when soft caps or biases are added.
MASKED_SCORE = -1e9


def token_mask(query_places: Tensor, key_places: Tensor, sliding_window: int | None = None) -> Tensor:
    """Which places a token sees: itself and what came before, inside the layer's own sliding window if it has one.

    Args:
        query_places: int `[t]`, places relative to the start of the query's block.
        key_places: int `[s]`, on the same axis; memory segments are negative.
        sliding_window: int or None. A token sees places less than this far back.

    Returns:
        bool `[t, s]`.
    """
    distance = query_places[:, None] - key_places[None, :]
    visible = distance >= 0
    if sliding_window is not None:
        visible = ops.logical_and(visible, distance < sliding_window)
    return visible


def attention_scores(query: Tensor, key: Tensor, scale: float, soft_cap: float | None = None) -> Tensor:
    """Scaled, optionally soft-capped scores of grouped-query attention, without repeating keys.

    Args:
        query: `[b, t, h, c]`.
        key: `[b, s, k, c]`, h a multiple of k.
        scale: float.
        soft_cap: float or None. Gemma 2's `cap * tanh(scores / cap)`.

    Returns:
        float32 `[b, k, g, t, s]`.
    """
    heads, head_dim = query.shape[-2:]
    key_heads = key.shape[-2]
    query = ops.reshape(query * scale, (-1, ops.shape(query)[1], key_heads, heads // key_heads, head_dim))
    scores = ops.cast(ops.einsum("btkgc,bskc->bkgts", query, key), "float32")
    if soft_cap is not None:
        scores = ops.tanh(scores / soft_cap) * soft_cap
    return scores


def attend(scores: Tensor, value: Tensor, mask: Tensor, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """The rest of Attention(q, K, V), for tokens and for FAM alike: masked softmax and the weighted sum of values.

    Args:
        scores: float32 `[b, k, g, t, s]`, of `attention_scores`.
        value: `[b, s, k, c]`.
        mask: bool, broadcastable to `[b, t, s]`; True is visible. A query that sees nothing gets zeros.
        dropout: float, rate on the attention weights; needs `seed`.
        seed: a seed drawn by `keras.random.SeedGenerator.next()`, or None for no dropout.

    Returns:
        `[b, t, h, c]` in the dtype of `value`.
    """
    mask = mask[:, None, None]
    weights = ops.softmax(ops.where(mask, scores, MASKED_SCORE), axis=-1)
    # A row without one visible key would average what it must not see: give it zeros.
    weights = ops.cast(ops.where(mask, weights, 0.0), value.dtype)
    weights = seeded_dropout(weights, dropout, seed)
    attended = ops.einsum("bkgts,bskc->btkgc", weights, value)
    _, key_heads, groups, _, _ = scores.shape
    return ops.reshape(attended, (-1, ops.shape(attended)[1], key_heads * groups, value.shape[-1]))


class _DrawnSeed(keras.random.SeedGenerator):
    """A seed that was drawn elsewhere, in the form that `keras.random` accepts on every backend."""

    def __init__(self, seed):
        self._drawn = seed
        self._initial_seed = 0

    def next(self, ordered=True):
        return self._drawn


def seeded_dropout(x: Tensor, rate: float, seed: Tensor | None) -> Tensor:
    """Dropout as a pure function of `seed`: the same inside a scan, a recomputation, or neither.

    `keras.layers.Dropout` draws from a variable, which scan and rematerialisation either refuse or silently repeat with
    another mask. Seeds are therefore drawn outside and passed in.

    Args:
        x: any float tensor.
        rate: float in [0, 1).
        seed: a tensor drawn by `SeedGenerator.next()`, or None for no dropout.

    Returns:
        A tensor like `x`.
    """
    if seed is None or not rate:
        return x
    return keras.random.dropout(x, rate, seed=_DrawnSeed(seed))


def split_blocks(x: Tensor, block_size: int, length: int | Tensor) -> Tensor:
    """Pads axis 1 to whole blocks and splits it: `[b, length, ...]` to `[b, n, B, ...]`.

    Args:
        x: tensor with the sequence on axis 1.
        block_size: int.
        length: int, or a scalar tensor where the length is dynamic.

    Returns:
        `[b, n, B, ...]` with zeros (False) in the padding.
    """
    missing = -length % block_size
    if not (isinstance(missing, int) and missing == 0):
        shape = ops.shape(x)
        x = ops.concatenate([x, ops.zeros((shape[0], missing, *shape[2:]), dtype=x.dtype)], axis=1)
    return ops.reshape(x, (ops.shape(x)[0], -1, block_size, *x.shape[2:]))


def merge_blocks(x: Tensor, length: int | Tensor) -> Tensor:
    """The inverse of `split_blocks`: `[b, n, B, ...]` to `[b, length, ...]`."""
    shape = ops.shape(x)
    x = ops.reshape(x, (shape[0], -1, *x.shape[3:]))
    return x[:, :length]


def block_windows(x: Tensor, memory_segments: int) -> Tensor:
    """For every block, the block itself behind its memory segments.

    Args:
        x: `[b, n, B, ...]`.
        memory_segments: int, m.

    Returns:
        `[b, n, (m+1) * B, ...]`, oldest segment first; zeros (False) where there is no such block yet.
    """
    if memory_segments == 0:
        return x
    shape = ops.shape(x)
    blocks = shape[1]
    nothing = ops.zeros((shape[0], memory_segments, *shape[2:]), dtype=x.dtype)
    padded = ops.concatenate([nothing, x], axis=1)
    segments = [padded[:, j : j + blocks] for j in range(memory_segments + 1)]
    return ops.concatenate(segments, axis=2)
