"""The FAM half of Algorithm 2: how one layer's working memory is projected, and updated from one block."""

from typing import NamedTuple

from keras import ops

from keras_fam.rotary import turn
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


def project_fam(attention, vectors, started, rotation, normalize=identity):
    """Qf, Kf, Vf = QKV(norm(F)), with Kf on the last N places of the block that F compressed.

    Args:
        attention: `FeedbackAttention`.
        vectors: `[b, N, d]`, F.
        started: bool `[b]`.
        rotation: `Rotation` of those N places, or None.
        normalize: callable, the layer's norm before attention.

    Returns:
        `FAM`.
    """
    normed = normalize(vectors)
    key, value = attention.project_key_value(normed)
    return FAM(vectors, turn(key, rotation), value, attention.project_query(normed), started)


def update_fam(attention, fam, key, value, valid, rotation, complete=add_residual, weights_seed=None, seeds=None):
    """F_tau from F_{tau-1} and one whole block.

        A^F = Attention(Qf, [Kf, K_tau], [Vf, V_tau]) + R;   F_tau = FF(norm(A^F)) + A^F

    Args:
        attention: `FeedbackAttention`.
        fam: `FAM` after the block before.
        key: `[b, B, k, c]`, rotated.
        value: `[b, B, k, c]`.
        valid: bool `[b, B]`, False for padding, or None.
        rotation: `Rotation` of the block's last N places, where Qf sits, or None.
        complete: callable `(attention, residual, seeds)`, the rest of the layer.
        weights_seed, seeds: drawn seeds for the dropout of the attention weights and of `complete`, or None.

    Returns:
        `(vectors [b, N, d], started [b])`. Rows whose block is nothing but padding keep theirs.
    """
    vectors = fam.vectors
    if valid is None:
        valid = ops.ones((1, key.shape[1]), "bool")
    always = ops.ones((ops.shape(valid)[0], vectors.shape[1]), "bool")
    attended = attention.attend(
        turn(fam.query, rotation),
        ops.concatenate([fam.key, key], axis=1),
        ops.concatenate([fam.value, value], axis=1),
        ops.concatenate([always, valid], axis=1)[:, None],
        weights_seed,
    )
    # R: the learned prompt carries no context, so the first block after it has no residual.
    residual = ops.where(fam.started[:, None, None], vectors, ops.zeros_like(vectors))
    updated = ops.cast(complete(attention.output_dense(attended), residual, seeds), vectors.dtype)
    read = ops.any(valid, axis=1)
    return ops.where(read[:, None, None], updated, vectors), ops.logical_or(fam.started, read)
