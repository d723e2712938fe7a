"""The FAM half of Algorithm 2: how one layer's working memory is projected, and updated from one block."""

from typing import NamedTuple

from keras import ops

from keras_fam.ops import attend
from keras_fam.types import Tensor


class FAM(NamedTuple):
    """One layer's working memory between two blocks, with what the layer projects from it.

    `vectors` `[b, N, d]`; `key` and `value` `[b, N, k, c]`, the key on the last N places of the block before; `query`
    `[b, N, h, c]`, not yet rotated; `started` bool `[b]`, False while the row still holds the learned prompt.
    """

    vectors: Tensor
    key: Tensor
    value: Tensor
    query: Tensor
    started: Tensor


def identity(x):
    """The norm of an attention layer that stands alone."""
    return x


def add_residual(attention, residual, seeds=None):
    """The rest of a decoder layer, for an attention layer that stands alone."""
    return attention + residual


def project_fam(attention, vectors, started, normalize=identity):
    """Qf, Kf, Vf = QKV(norm(F)), with Kf on the last N places of the block that F compressed.

    Args:
        attention: `FeedbackAttention`.
        vectors: `[b, N, d]`, F.
        started: bool `[b]`.
        normalize: callable, the layer's norm before attention.

    Returns:
        `FAM`.
    """
    normed = normalize(vectors)
    key, value = attention.project_key_value(normed)
    key = attention.rotate(key, ops.arange(-vectors.shape[1], 0))
    return FAM(vectors, key, value, attention.project_query(normed), started)


def update_fam(attention, fam, key, value, valid, complete=add_residual, weights_seed=None, seeds=None):
    """F_tau from F_{tau-1} and one whole block.

        A^F = Attention(Qf, [Kf, K_tau], [Vf, V_tau]) + R;   F_tau = FF(norm(A^F)) + A^F

    Args:
        attention: `FeedbackAttention`.
        fam: `FAM` after the block before.
        key: `[b, B, k, c]`, rotated to places 0 .. B-1.
        value: `[b, B, k, c]`.
        valid: bool `[b, B]`, False for padding.
        complete: callable `(attention, residual, seeds)`, the rest of the layer.
        weights_seed, seeds: drawn seeds for the dropout of the attention weights and of `complete`, or None.

    Returns:
        `(vectors [b, N, d], started [b])`. Rows whose block is nothing but padding keep theirs.
    """
    length, size = fam.vectors.shape[1], attention.block_size
    query = attention.rotate(fam.query, ops.arange(size - length, size))
    always = ops.ones_like(fam.vectors[:, :, 0], dtype="bool")
    attended = attend(
        attention.scores(query, ops.concatenate([fam.key, key], axis=1)),
        ops.concatenate([fam.value, value], axis=1),
        ops.concatenate([always, valid], axis=1)[:, None],
        attention.dropout,
        weights_seed,
    )
    # R: the learned prompt carries no context, so the first block after it has no residual.
    residual = ops.where(fam.started[:, None, None], fam.vectors, ops.zeros_like(fam.vectors))
    updated = ops.cast(complete(attention.output_dense(attended), residual, seeds), fam.vectors.dtype)
    read = ops.any(valid, axis=1)
    return ops.where(read[:, None, None], updated, fam.vectors), ops.logical_or(fam.started, read)
