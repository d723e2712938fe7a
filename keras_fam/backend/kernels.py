"""Attention(q, K, V) of one set of queries, by what is fastest on the backend at hand.

The choices were measured: see `benchmarks/`. Grouped queries go without repeating keys, but on torch's accelerators.
"""

from typing import NamedTuple

import keras
from keras import ops

from keras_fam.backend import on_jax_cpu
from keras_fam.backend.random import seeded_dropout
from keras_fam.types import Tensor

# Large enough to vanish after softmax in float32, small enough not to overflow when soft caps or biases are added.
MASKED_SCORE = -1e9
MASKED_SCORE_IN_FLOAT16 = -32752.0  # half of the lowest number
# On jax's CPU: from this many scores a head on, one head after another beats all heads at once.
SCORES_FOR_SINGLE_HEADS = 1 << 17


class Scoring(NamedTuple):
    """How scores are made of queries and keys.

    Attributes:
        scale: float, what scores are multiplied by.
        soft_cap: float or None. Gemma 2's `cap * tanh(scores / cap)`.
        dropout: float, rate on the attention weights; acts only where a seed is given.
    """

    scale: float
    soft_cap: float | None = None
    dropout: float = 0.0


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scoring: Scoring,
    seed: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Attention(q, K, V), for tokens and for FAM alike.

    Args:
        query: `[b, t, h, c]`.
        key: `[b, s, k, c]`, h a multiple of k.
        value: `[b, s, k, c]`.
        mask: bool, broadcastable to `[b, t, s]`; True is visible. A query that sees nothing gets zeros.
        scoring: `Scoring`.
        seed: a seed drawn by `keras.random.SeedGenerator.next()`, or None for no dropout.
        key_bias: float32 `[s]` that is added to the scores of every query, or None.

    Returns:
        `[b, t, h, c]` in the dtype of `value`.
    """
    seed = seed if scoring.dropout else None
    if keras.config.backend() == "torch" and scoring.soft_cap is None and seed is None:
        attended = _fused_torch(query, key, value, _bias(mask, query.dtype, key_bias), scoring.scale)
    elif seed is None and on_jax_cpu() and query.shape[1] * key.shape[1] >= SCORES_FOR_SINGLE_HEADS:
        attended = _single_heads_jax(query, key, value, _bias(mask, "float32", key_bias), scoring)
    else:
        attended = _weigh(attention_scores(query, key, scoring), value, _bias(mask, "float32", key_bias), scoring, seed)
    return _zeros_where_blind(attended, mask)


def attention_scores(query: Tensor, key: Tensor, scoring: Scoring) -> Tensor:
    """Scaled, optionally soft-capped scores: `[b, t, h, c]` and `[b, s, k, c]` to float32 `[b, k, g, t, s]`."""
    batch, length, heads, head_dim = ops.shape(query)
    key_heads = key.shape[2]
    groups = heads // key_heads
    query = ops.reshape(query * scoring.scale, (batch, length, key_heads, groups, head_dim))
    query = ops.reshape(ops.transpose(query, (0, 2, 3, 1, 4)), (batch, key_heads, groups * length, head_dim))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    scores = ops.cast(ops.reshape(scores, (batch, key_heads, groups, length, ops.shape(key)[1])), "float32")
    return _cap(scores, scoring.soft_cap)


def _weigh(scores, value, bias, scoring, seed):
    """Softmax of scores `[b, k, g, t, s]` and a bias `[b, t, s]`, and the weighted sum of values: `[b, t, h, c]`."""
    (batch, key_heads, groups, length, slots), head_dim = ops.shape(scores), value.shape[-1]
    weights = ops.softmax(scores + bias[:, None, None], axis=-1)
    weights = seeded_dropout(ops.cast(weights, value.dtype), scoring.dropout, seed)
    weights = ops.reshape(weights, (batch, key_heads, groups * length, slots))
    attended = ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3)))
    attended = ops.reshape(attended, (batch, key_heads, groups, length, head_dim))
    return ops.reshape(ops.transpose(attended, (0, 3, 1, 2, 4)), (batch, length, key_heads * groups, head_dim))


def attend_once(
    queries: Tensor,
    ring: tuple[Tensor, Tensor],
    near: tuple[Tensor, Tensor],
    mask: Tensor,
    scoring: Scoring,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Attention(q, K, V) of one token, whose query is turned otherwise for every block of the ring.

    The keys and values of all heads stay where they are, one row `[k * c]` a place. A head's query is put into a row of
    zeros, at the place of its key head, and multiplied with whole rows. That is k times the multiplications, and still
    faster than to gather each head's keys first. Of the weighted sum of value rows each head keeps its own part.

    Args:
        queries: `[b, r + 1, h, c]`, one for every block of the ring and one for `near`.
        ring: pair of key and value `[b, r * B, k, c]`.
        near: pair of key and value `[b, s, k, c]`: sink, FAM and the token itself.
        mask: bool `[1 or b, 1, r * B + s]`.
        scoring: `Scoring`; without dropout.
        key_bias: float32 `[r * B + s]` that is added to the scores, or None.

    Returns:
        `[b, 1, h, c]` in the dtype of the values.
    """
    (batch, turns, heads, head_dim), key_heads = ops.shape(queries), ring[0].shape[2]
    blocks, groups, row = turns - 1, heads // key_heads, key_heads * head_dim
    own = ops.reshape(ops.eye(key_heads, dtype=queries.dtype), (key_heads, 1, key_heads, 1))
    queries = ops.reshape(queries * scoring.scale, (batch, turns, key_heads, groups, 1, head_dim)) * own
    queries = ops.reshape(queries, (batch, turns, heads, row))
    (key, value), (near_key, near_value) = (
        [ops.reshape(x, (batch, x.shape[1], row)) for x in pair] for pair in (ring, near)
    )
    slots = key.shape[1]
    by_block = ops.reshape(key, (batch, blocks, slots // blocks, row))
    scores = ops.matmul(queries[:, :blocks], ops.swapaxes(by_block, 2, 3))
    scores = ops.reshape(ops.swapaxes(scores, 1, 2), (batch, heads, slots))
    scores = ops.concatenate([scores, ops.matmul(queries[:, blocks], ops.swapaxes(near_key, 1, 2))], axis=2)
    scores = _cap(ops.cast(scores, "float32"), scoring.soft_cap)
    weights = ops.cast(ops.softmax(scores + _bias(mask, "float32", key_bias), axis=-1), value.dtype)
    attended = ops.matmul(weights[:, :, :slots], value) + ops.matmul(weights[:, :, slots:], near_value)
    attended = ops.reshape(attended, (batch, key_heads, groups, key_heads, head_dim)) * own
    return _zeros_where_blind(ops.reshape(ops.sum(attended, axis=3), (batch, 1, heads, head_dim)), mask)


def _cap(scores, soft_cap):
    return scores if soft_cap is None else ops.tanh(scores / soft_cap) * soft_cap


def _bias(mask, dtype, key_bias=None):
    """What is added to scores: 0 (or `key_bias`) where `mask` is True, else nearly minus infinity."""
    masked = MASKED_SCORE_IN_FLOAT16 if keras.backend.standardize_dtype(dtype) == "float16" else MASKED_SCORE
    return ops.cast(ops.where(mask, 0.0 if key_bias is None else key_bias, masked), dtype)


def _zeros_where_blind(attended, mask):
    """A query without one visible key has averaged what it must not see: give it zeros."""
    sees = ops.any(mask, axis=-1)
    return ops.where(sees[:, :, None, None], attended, ops.zeros_like(attended))


def _fused_torch(query, key, value, bias, scale):
    """torch's own kernel, which never holds all scores; `ops.dot_product_attention` would repeat keys and values."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type != "cpu":  # The kernels that take a mask there want as many keys as queries.
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        grouped = False
    attended = scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None], scale=scale, enable_gqa=grouped)
    return attended.transpose(1, 2)


def _single_heads_jax(query, key, value, bias, scoring):
    """XLA's CPU multiplies single matrices on all cores and stacks of them on one; the scores are not kept."""
    import jax

    (batch, length, heads, head_dim), (_, slots, key_heads, _) = query.shape, key.shape
    groups = heads // key_heads
    bias = jax.numpy.broadcast_to(bias, (bias.shape[0], length, slots))

    @jax.checkpoint
    def head(query, key, value, bias):
        scores = _cap(jax.numpy.matmul(query * scoring.scale, key.T).astype("float32"), scoring.soft_cap)
        return jax.nn.softmax(scores + bias, axis=-1).astype(value.dtype) @ value

    def group(xs):
        index, queries, key, value = xs
        row = bias[0] if bias.shape[0] == 1 else bias[index // key_heads]
        return jax.lax.map(lambda query: head(query, key, value, row), queries)

    query = query.reshape(batch, length, key_heads, groups, head_dim).transpose(0, 2, 3, 1, 4)
    query = query.reshape(batch * key_heads, groups, length, head_dim)
    key, value = (x.transpose(0, 2, 1, 3).reshape(batch * key_heads, slots, x.shape[-1]) for x in (key, value))
    attended = jax.lax.map(group, (jax.numpy.arange(batch * key_heads), query, key, value))
    attended = attended.reshape(batch, key_heads, groups, length, -1).transpose(0, 3, 1, 2, 4)
    return attended.reshape(batch, length, heads, -1)
